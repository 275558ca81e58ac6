/* The way from an exception's fixed address to C and back.  exceptions.c puts a stub there that makes room for the
 * frame, saves r3 and comes here with the vector in it.
 *
 * RAM is mapped one to one, so that the stack is where it was although an exception turns translation off.  Only the
 * registers that C may change are saved; the frame is `struct exception_frame` in exceptions.h.
 */
    .section .text.exceptions, "ax"
    .globl  exception_entry
exception_entry:
    stw     0, 8(1)
    stw     2, 12(1)
    stw     4, 20(1)
    stw     5, 24(1)
    stw     6, 28(1)
    stw     7, 32(1)
    stw     8, 36(1)
    stw     9, 40(1)
    stw     10, 44(1)
    stw     11, 48(1)
    stw     12, 52(1)
    mflr    4
    mfctr   5
    mfxer   6
    mfcr    7
    mfsrr0  8
    mfsrr1  9
    stw     4, 56(1)
    stw     5, 60(1)
    stw     6, 64(1)
    stw     7, 68(1)
    stw     8, 72(1)
    stw     9, 76(1)

/* Translation on again: what is not to be executed is written to faster. */
    mfmsr   4
    ori     4, 4, 0x30
    mtmsr   4
    isync
    mr      4, 1
    bl      exception_dispatch

    lwz     4, 56(1)
    lwz     5, 60(1)
    lwz     6, 64(1)
    lwz     7, 68(1)
    lwz     8, 72(1)
    lwz     9, 76(1)
    mtlr    4
    mtctr   5
    mtxer   6
    mtcr    7
    mtsrr0  8
    mtsrr1  9
    lwz     0, 8(1)
    lwz     2, 12(1)
    lwz     3, 16(1)
    lwz     4, 20(1)
    lwz     5, 24(1)
    lwz     6, 28(1)
    lwz     7, 32(1)
    lwz     8, 36(1)
    lwz     9, 40(1)
    lwz     10, 44(1)
    lwz     11, 48(1)
    lwz     12, 52(1)
    addi    1, 1, 96
    rfi
