/* Instructions that fault, each with a name for its place and a place to go on at.  fault_place and resume_place are
 * set first, so that the handler in main.c can compare and continue. */

    .macro  provoke name, instruction:vararg
    .globl  \name
\name:
    leaq    1f(%rip), %rax
    movq    %rax, fault_place(%rip)
    leaq    2f(%rip), %rax
    movq    %rax, resume_place(%rip)
    xorl    %eax, %eax
1:  \instruction
2:  ret
    .endm

    .text
provoke provoke_divide_error, divl %eax
provoke provoke_invalid_opcode, ud2
provoke provoke_bad_selector, movw %si, %ds                  /* SI: no such descriptor */
provoke provoke_read, movb (%rdi), %al
provoke provoke_write, movb %al, (%rdi)
provoke provoke_fetch, jmp *%rdi
provoke provoke_invalid_interrupt, int $0x70                 /* its gate is not there */

/* A push that cannot be done, so that the page fault cannot be pushed either: RDI = an address that is not mapped. */
    .globl  provoke_double_fault
provoke_double_fault:
    movq    %rsp, resume_stack(%rip)
    leaq    1f(%rip), %rax
    movq    %rax, fault_place(%rip)
    leaq    2f(%rip), %rax
    movq    %rax, resume_place(%rip)
    movq    %rdi, %rsp
1:  pushq   %rax
2:  ret

/* Traps: the address that is pushed lies behind the instruction. */
    .globl  provoke_breakpoint
provoke_breakpoint:
    leaq    1f(%rip), %rax
    movq    %rax, fault_place(%rip)
    movq    %rax, resume_place(%rip)
    int3
1:  ret

/* Four instructions in single steps, and the POPF that ends it: five traps. */
    .globl  single_steps
single_steps:
    pushfq
    orl     $0x100, (%rsp)
    popfq
    nop
    nop
    pushfq
    andl    $~0x100, (%rsp)
    popfq
    ret

/* A window of one instruction after STI.  An interrupt that waits must come at the second label. */
    .globl  sti_window, after_sti, after_shadow
sti_window:
    sti
after_sti:
    nop
after_shadow:
    cli
    ret

/* A copy in single bytes that can be interrupted after any of them. */
    .globl  copy_bytes
copy_bytes:
    movq    %rdx, %rcx
    rep movsb
    ret

/* The function that changes: main.c copies it to a page of its own.  It stores into the very block it runs in.
 * EDI = the number it shall return. */
    .globl  changing, changing_end
changing:
    movl    %edi, changed + 1(%rip)
changed:
    movl    $0, %eax
    ret
changing_end:

    .section .bss
    .balign 8
    .globl  fault_place, resume_place, resume_stack
fault_place:    .skip 8
resume_place:   .skip 8
resume_stack:   .skip 8
