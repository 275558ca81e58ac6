/* From the reset vector to long mode.
 *
 * An x86 processor wakes up in real mode at CS:IP = F000:FFF0, but with the hidden base of CS at FFFF0000h: the first
 * instruction comes from FFFFFFF0h, 16 bytes below 4 GiB.  As long as nothing loads CS, all code in the last 64 KiB can
 * be reached.  The only far jump here leaves real mode, so the copy of the ROM below 1 MiB is never needed.
 *
 * RAM used (the whole layout is in firmware.h): six bootstrap page tables from 1000h to 6FFFh, the stack below 10000h.
 */

#define CODE32  0x08
#define CODE64  0x10            /* Linux calls it __BOOT_CS */
#define DATA    0x18            /* and this __BOOT_DS */

#define BOOT_PML4  0x1000
#define BOOT_PDPT  0x2000
#define BOOT_PDS   0x3000       /* four of them, one for each GiB below 4 GiB */
#define STACK_TOP  0x10000

#define PRESENT    0x01
#define WRITABLE   0x02
#define LARGE      0x80         /* in a page directory: a page of 2 MiB */
#define NX_HIGH    0x80000000   /* no-execute: bit 63, so bit 31 of the upper half */

#define CR0_PE_ONLY    0x00000011 /* ET, PE; caches on (CD and NW clear) */
#define CR0_LONG_MODE  0x80010033 /* PG, WP, NE, ET, MP, PE */
#define CR4_LONG_MODE  0x00000620 /* OSXMMEXCPT, OSFXSR, PAE */
#define MSR_EFER       0xc0000080
#define EFER_LME_NXE   0x00000900
#define MULTIBOOT_LOADER 0x2badb002

    .section .reset, "ax"
    .code16
reset_section:

/* Step 1, real mode: load the descriptor table.  CS reaches the ROM, DS does not, hence the override. */
real_mode:
    cli
    cld
    lgdtl   %cs:(gdt_pointer - reset_section + 0xff00)

/* Step 2: switch on protection, and leave real mode with a far jump to a 32-bit code segment. */
    movl    $CR0_PE_ONLY, %eax
    movl    %eax, %cr0
    ljmpl   $CODE32, $protected_mode

/* The descriptors carry their "accessed" bit already, since the processor could not set it in a ROM. */
    .balign 8
gdt:
    .quad   0
    .quad   0x00cf9b000000ffff      /* 08h: 32-bit code, base 0, limit 4 GiB */
    .quad   0x00af9b000000ffff      /* 10h: 64-bit code */
    .quad   0x00cf93000000ffff      /* 18h: data, base 0, limit 4 GiB */
gdt_pointer:
    .word   gdt_pointer - gdt - 1
    .long   gdt

/* Step 0: here the processor wakes up. */
    .org    0xf0
    .globl  reset_vector
reset_vector:
    jmp     real_mode
    .org    0x100

    .text
    .code32
/* Step 3, protected mode: flat data segments. */
protected_mode:
    movl    $DATA, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    xorl    %eax, %eax
    movl    %eax, %fs
    movl    %eax, %gs

/* Step 4: clear the two upper tables (after a reset, RAM holds what was there before). */
    movl    $BOOT_PML4, %edi
    movl    $(2 * 4096 / 4), %ecx
    rep stosl
    movl    $(BOOT_PDPT + PRESENT + WRITABLE), BOOT_PML4

    movl    $BOOT_PDS, %eax
    movl    $BOOT_PDPT, %edi
fill_pdpt:
    leal    (PRESENT + WRITABLE)(%eax), %edx
    movl    %edx, (%edi)
    addl    $4096, %eax
    addl    $8, %edi
    cmpl    $(BOOT_PDPT + 4 * 8), %edi
    jne     fill_pdpt

/* Step 5: map the first 4 GiB one to one in pages of 2 MiB, writable and no-execute. */
    movl    $(PRESENT + WRITABLE + LARGE), %eax
    movl    $BOOT_PDS, %edi
fill_pds:
    movl    %eax, (%edi)
    movl    $NX_HIGH, 4(%edi)
    addl    $0x200000, %eax
    addl    $8, %edi
    cmpl    $(BOOT_PDS + 4 * 4096), %edi
    jne     fill_pds

/* Step 6: only the last 2 MiB, where this ROM lies, are executable, and they are not writable. */
    movl    $(0xffe00000 + PRESENT + LARGE), -8(%edi)
    movl    $0, -4(%edi)

/* Step 7: PAE and SSE on, the tables in CR3, long mode and no-execute enabled, paging on.  WP makes read-only pages
 * read-only for the supervisor as well. */
    movl    $CR4_LONG_MODE, %eax
    movl    %eax, %cr4
    movl    $BOOT_PML4, %eax
    movl    %eax, %cr3
    movl    $MSR_EFER, %ecx
    movl    $EFER_LME_NXE, %eax
    xorl    %edx, %edx
    wrmsr
    movl    $CR0_LONG_MODE, %eax
    movl    %eax, %cr0

/* Step 8: the far jump to a 64-bit code segment enters long mode; the rest is C. */
    ljmpl   $CODE64, $long_mode

    .code64
long_mode:
    movl    $STACK_TOP, %esp
    xorl    %ebp, %ebp
    call    firmware_main
1:  cli
    hlt
    jmp     1b

/* u32 enter_guest(entry, boot_info): a guest that returns gives its exit code, like a function. */
    .globl  enter_guest
enter_guest:
    pushq   %rbp
    movq    %rdi, %rax
    movq    %rsi, %rdi
    xorl    %esi, %esi
    xorl    %ebp, %ebp
    callq   *%rax
    popq    %rbp
    ret

/* void enter_linux(entry, zero_page): the 64-bit boot protocol (Documentation/arch/x86/boot.rst): interrupts off, RSI the
 * zero page, flat segments with the selectors 10h and 18h. */
    .globl  enter_linux
enter_linux:
    cli
    movl    $DATA, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    xorl    %ebp, %ebp
    xorl    %ebx, %ebx
    jmpq    *%rdi

/* void enter_protected_mode(entry, information): the machine state of the Multiboot specification, version 0.6.96, §3.2,
 * which is that of PVH too. */
    .globl  enter_protected_mode
enter_protected_mode:
    cli
    movl    %esi, %ebx              /* EBX: what the kernel is told; EDI keeps the entry point */
    pushq   $CODE32
    leaq    compatibility_mode(%rip), %rax
    pushq   %rax
    lretq                           /* a far return to a 32-bit code segment leaves 64-bit mode */
    .code32
compatibility_mode:
    movl    $DATA, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    movl    %eax, %fs
    movl    %eax, %gs
    movl    $CR0_PE_ONLY, %eax      /* paging off, which leaves long mode as well */
    movl    %eax, %cr0
    movl    $MSR_EFER, %ecx
    xorl    %eax, %eax
    xorl    %edx, %edx
    wrmsr
    movl    %eax, %cr4
    movl    $MULTIBOOT_LOADER, %eax
    jmpl    *%edi
    .code64

/* One entry stub of 16 bytes for each of the 32 exceptions.  The processor pushes an error code for some of them; the
 * others push a zero, so that the stack looks the same to exception(). */
    .balign 16
    .globl  exception_stubs
exception_stubs:
    .set    vector, 0
    .rept   32
    .balign 16
    .if     (0x60227d00 >> vector) & 1
    .else
    pushq   $0
    .endif
    pushq   $vector
    jmp     exception_common
    .set    vector, vector + 1
    .endr

exception_common:
    popq    %rdi                    /* vector */
    popq    %rsi                    /* error code */
    movq    (%rsp), %rdx            /* RIP */
    movq    %cr2, %rcx
    andq    $-16, %rsp
    call    exception
