/* Where a guest begins: in long mode, interrupts off, RDI = boot information. */

    .section .text.start, "ax"
    .globl  _start
_start:
/* Step 1: a stack of our own; the firmware's is small. */
    leaq    stack_top(%rip), %rsp
    xorl    %ebp, %ebp

/* Step 2: clear bss.  After a reset without a reload it would hold old values. */
    movq    %rdi, %rbx
    leaq    bss_start(%rip), %rdi
    leaq    bss_end(%rip), %rcx
    subq    %rdi, %rcx
    shrq    $3, %rcx
    xorl    %eax, %eax
    cld
    rep stosq

/* Step 3: C.  What guest_main returns is the exit code. */
    movq    %rbx, %rdi
    call    guest_start
1:  cli
    hlt
    jmp     1b

    .section .bss.stack, "aw", @nobits
    .balign 16
    .skip   16384
stack_top:
