/* Where a guest begins: in real mode, interrupts off, r3 = boot information. */

    .section .text.start, "ax"
    .globl  _start
_start:
/* Step 1: a stack of our own. */
    lis     1, stack_top@ha
    addi    1, 1, stack_top@l - 16
    li      0, 0
    stw     0, 0(1)

/* Step 2: clear bss. */
    mr      31, 3
    lis     4, bss_start@ha
    addi    4, 4, bss_start@l - 4
    lis     5, bss_end@ha
    addi    5, 5, bss_end@l
    subf    5, 4, 5
    srwi    5, 5, 2
    addi    5, 5, -1
    mtctr   5
1:  stwu    0, 4(4)
    bdnz    1b

/* Step 3: C.  What guest_main returns is the exit code. */
    mr      3, 31
    bl      guest_start
2:  b       2b

    .section .bss.stack, "aw", @nobits
    .balign 16
    .skip   16384
stack_top:
