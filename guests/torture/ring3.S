/* To ring 3 and back, and the programs that run there. */
#define USER_DATA 0x1b
#define USER_CODE 0x23
#define FLAG_IF 0x200

    .text
/* u64 ring3_run(u64 rip, u64 rsp): the program at RIP on its stack, with interrupts on, until ring3_leave(). */
    .globl  ring3_run
ring3_run:
    pushq   %rbx
    pushq   %rbp
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    movq    %rsp, kernel_stack(%rip)
    pushq   $USER_DATA
    pushq   %rsi
    pushq   $FLAG_IF
    pushq   $USER_CODE
    pushq   %rdi
    iretq

/* Where a handler sends the program that has ended; interrupts are off.  RAX is what ring3_run() returns. */
    .globl  ring3_leave
ring3_leave:
    movq    kernel_stack(%rip), %rsp
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %rbp
    popq    %rbx
    ret

/* SYSCALL enters here, with interrupts off and the program's stack still in place.  EAX = 0 ends the program with RDI
 * as its result; any other number counts as a call and is returned doubled. */
    .globl  syscall_entry
syscall_entry:
    testl   %eax, %eax
    jz      1f
    incq    system_calls(%rip)
    addl    %eax, %eax
    sysretq
1:  movq    %rdi, %rax
    jmp     ring3_leave

/* The programs are copied to a page that ring 3 may execute, so they must not care where they are. */
    .globl  ring3_programs, ring3_programs_end
ring3_programs:

    .globl  ring3_divide_error
ring3_divide_error:
    xorl    %eax, %eax
    divl    %eax

    .globl  ring3_invalid_opcode
ring3_invalid_opcode:
    ud2

    .globl  ring3_privileged
ring3_privileged:
    hlt

    .globl  ring3_port
ring3_port:
    outb    %al, $0x80

    .globl  ring3_read_kernel
ring3_read_kernel:
    movl    $0x10000, %eax
    movl    (%rax), %eax

    .globl  ring3_write_read_only
ring3_write_read_only:
    movl    %eax, ring3_write_read_only(%rip)

    .globl  ring3_forbidden_interrupt
ring3_forbidden_interrupt:
    int     $0x71

/* INT n through a gate for ring 3, and back again: its handler adds 1 to RBX. */
    .globl  ring3_interrupts
ring3_interrupts:
    xorl    %ebx, %ebx
    .rept   10
    int     $0x72
    .endr
    movl    %ebx, %edi
    xorl    %eax, %eax
    syscall

/* 100 system calls; each must double its number and leave the other registers and the stack alone. */
    .globl  ring3_system_calls
ring3_system_calls:
    movl    $100, %ebx
    xorl    %ebp, %ebp
1:  pushq   %rbx
    movl    %ebx, %eax
    syscall
    popq    %rdx
    addl    %edx, %edx
    cmpl    %edx, %eax
    jne     2f
    incl    %ebp
2:  decl    %ebx
    jnz     1b
    movl    %ebp, %edi
    xorl    %eax, %eax
    syscall

/* Computes while the timer interrupts it: the sum of 1 to 4000. */
    .globl  ring3_compute
ring3_compute:
    movl    $4000, %ecx
    xorl    %edi, %edi
1:  addl    %ecx, %edi
    decl    %ecx
    jnz     1b
    xorl    %eax, %eax
    syscall
ring3_programs_end:

    .section .bss
    .balign 8
    .globl  system_calls
kernel_stack:   .skip 8
system_calls:   .skip 8
