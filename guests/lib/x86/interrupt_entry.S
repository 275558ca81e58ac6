/* The 256 places where interrupts arrive.  Each stub makes the stack look alike (some exceptions push an error code,
 * the others get a zero), notes its vector and goes on to the common part, which saves all registers for C. */

    .text
    .balign 16
    .globl  interrupt_stubs
interrupt_stubs:
    .set    vector, 0
    .rept   256
    .balign 16
    .if     vector < 32 && ((0x60227d00 >> (vector & 31)) & 1)      /* 8, 10 to 14, 17, 21, 29, 30 */
    .else
    pushq   $0
    .endif
    pushq   $vector
    jmp     interrupt_common
    .set    vector, vector + 1
    .endr

interrupt_common:
    pushq   %rax
    pushq   %rbx
    pushq   %rcx
    pushq   %rdx
    pushq   %rsi
    pushq   %rdi
    pushq   %rbp
    pushq   %r8
    pushq   %r9
    pushq   %r10
    pushq   %r11
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    cld
    movq    %rsp, %rdi
    movq    %rsp, %rbx              /* C wants 16-byte alignment, and keeps rbx */
    andq    $-16, %rsp
    call    interrupt_dispatch
    movq    %rbx, %rsp
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %r11
    popq    %r10
    popq    %r9
    popq    %r8
    popq    %rbp
    popq    %rdi
    popq    %rsi
    popq    %rdx
    popq    %rcx
    popq    %rbx
    popq    %rax
    addq    $16, %rsp               /* vector and error code */
    iretq
