/* REP STOS and REP MOVS, as much at once as one page allows.
 *
 * Unicorn executes each iteration of a repeated string instruction as a block of its own that jumps to itself, so that
 * clearing a page is 512 blocks.  When such a block is about to run once more, `run_string` does what the following
 * iterations would do and counts them, and leaves at least one entry of the block to Unicorn: the next page, the last
 * test of RCX, and whatever it does not do itself.
 *
 * It may only do what the iterations would certainly do without any help: both sides are in the table of translations
 * that Unicorn's own loads and stores look into first, with no flag set.  A flag stands for everything that is not
 * plain memory there: a device, ROM, a page that translated code was made from.  A page that is not in the table is
 * looked up by the next iteration, which sets the accessed and dirty bits and raises the page fault.  One that is
 * executable keeps a flag for ever and is never done here.
 *
 * Included by native.c and nowhere else.
 */
#define INLINE inline __attribute__((always_inline)) /* each callback is copied alone */

enum {
    RAX = 0, RCX = 1, RDX = 2, RSI = 6, RDI = 7,
    ES = 0, CS = 1, SS = 2, DS = 3, FS = 4, GS = 5,
    PAGE_SIZE = 0x1000, PAGE_MASK = PAGE_SIZE - 1,

    /* Unicorn's CPU state; vmm/cpu/layout.py says the same */
    DIRECTION_OFFSET = 172, /* 1, or -1 if DF is set */
    SEGMENT_BASES_OFFSET = 184 + 8,
    SEGMENT_BYTES = 24,
    TSC_AUX_OFFSET = 4896,
    HFLAGS_CPL = 3, HFLAGS_CS32 = 1 << 4, HFLAGS_ADDSEG = 1 << 6, HFLAGS_CS64 = 1 << 15, HFLAGS_SMAP = 1 << 23,
    EFLAGS_TF = 1 << 8, EFLAGS_RF = 1 << 16, EFLAGS_AC = 1 << 18,

    /* its tables of translations: one for each way to look at memory */
    MMU_KERNEL_SMAP = 0, MMU_USER = 1, MMU_KERNEL = 2,
};

struct tlb_entry {
    u64 read, write, code; /* the page's linear address and flags in the low 12 bits; -1: no such access */
    u64 gpa, addend;       /* linear address + addend = host address */
    u64 padding[3];
};

struct tlb {
    u64 mask; /* (number of entries - 1) * sizeof(struct tlb_entry) */
    struct tlb_entry *entries;
};

static INLINE u32 read_u32(const u8 *state, u32 offset)
{
    return *(const u32 *)(state + offset);
}

/* The entry for a linear address: what it holds must still be compared. */
static INLINE const struct tlb_entry *find_translation(const struct clock *clock, const u8 *state, u64 linear)
{
    u32 hflags = read_u32(state, clock->hflags_offset), way = MMU_KERNEL;
    if ((hflags & HFLAGS_CPL) == HFLAGS_CPL)
        way = MMU_USER;
    else if ((hflags & HFLAGS_SMAP) && !(read_u32(state, clock->eflags_offset) & EFLAGS_AC))
        way = MMU_KERNEL_SMAP;
    const struct tlb *tlb = (const struct tlb *)(state - clock->tlb_distance) + way;
    return (const struct tlb_entry *)((const u8 *)tlb->entries + ((linear >> 12) * sizeof(struct tlb_entry) & tlb->mask));
}

/* Only forms that mean the same to every processor: REX stands last, 64-bit code names no segment but FS and GS. */
static INLINE int decode(const u8 *code, u32 size, u32 hflags, struct string_instruction *found)
{
    u32 repeats = 0, wide = 0, operand = 0, address = 0, is_long = hflags & HFLAGS_CS64, i = 0;
    int override = -1;
    for (; i < size; i++) {
        u8 byte = code[i];
        if (byte == 0xf2 || byte == 0xf3)
            repeats = 1;
        else if (byte == 0x66)
            operand = 1;
        else if (byte == 0x67)
            address = 1;
        else if ((byte & 0xe7) == 0x26 && !is_long)
            override = byte >> 3 & 3; /* 26 2E 36 3E: ES CS SS DS */
        else if (byte == 0x64 || byte == 0x65)
            override = byte - 0x60;
        else
            break;
    }
    if (is_long && i < size && (code[i] & 0xf0) == 0x40)
        wide = code[i++] & 8;
    if (!repeats || i + 1 != size)
        return 0;
    u8 opcode = code[i];
    if ((opcode & 0xfe) != 0xa4 && (opcode & 0xfe) != 0xaa)
        return 0;
    u32 is_32 = is_long || (hflags & HFLAGS_CS32);
    found->is_move = (opcode & 0xfe) == 0xa4;
    found->width_shift = !(opcode & 1) ? 0 : wide ? 3 : !is_32 != !operand ? 2 : 1;
    found->address_bytes = is_long ? (address ? 4 : 8) : !is_32 != !address ? 4 : 2;
    found->override = override;
    return 1;
}

static INLINE u64 address_mask(u32 bytes)
{
    return bytes == 8 ? ~0ull : (1ull << 8 * bytes) - 1;
}

/* A register written in the instruction's address size: 16 bits leave the rest alone, 32 bits clear it. */
static INLINE void add_to_register(u64 *place, u64 value, u32 address_bytes)
{
    u64 sum = *place + value;
    *place = address_bytes == 2 ? (*place & ~0xffffull) | (sum & 0xffff) : sum & address_mask(address_bytes);
}

static INLINE u64 linear_address(const u8 *state, u32 hflags, const struct string_instruction *instruction, u64 offset,
                                 int segment, int override)
{
    if (override < 0 && instruction->address_bytes != 8 && (hflags & HFLAGS_ADDSEG))
        override = segment;
    u64 base = override < 0 ? 0 : *(const u64 *)(state + SEGMENT_BASES_OFFSET + SEGMENT_BYTES * override);
    return hflags & HFLAGS_CS64 ? offset + base : (offset + base) & 0xffffffff;
}

/* How many whole elements from here on lie in the page, before the offset in the segment wraps round. */
static INLINE u64 elements_in_page(u64 linear, u64 offset, u64 mask, u32 shift, int down)
{
    u64 in_page = linear & PAGE_MASK, width = 1ull << shift;
    if (in_page + width > PAGE_SIZE)
        return 0;
    u64 page = (down ? in_page : PAGE_SIZE - width - in_page) >> shift;
    u64 wrap = (down ? offset : mask - offset) >> shift;
    return (page < wrap ? page : wrap) + 1;
}

/* The iterations themselves.  Overlapping ranges need no care: it is one element after the other here too. */
#if defined(__x86_64__)
#define REPEAT(letter, down, ...) \
    do { \
        if (down) \
            __asm__ volatile("std; rep " letter "; cld" __VA_ARGS__); \
        else \
            __asm__ volatile("rep " letter __VA_ARGS__); \
    } while (0)

static INLINE void store_all(u8 *to, u64 value, u64 count, u32 shift, int down)
{
    switch (shift) {
    case 0: REPEAT("stosb", down, : "+D"(to), "+c"(count) : "a"(value) : "memory", "cc"); break;
    case 1: REPEAT("stosw", down, : "+D"(to), "+c"(count) : "a"(value) : "memory", "cc"); break;
    case 2: REPEAT("stosl", down, : "+D"(to), "+c"(count) : "a"(value) : "memory", "cc"); break;
    default: REPEAT("stosq", down, : "+D"(to), "+c"(count) : "a"(value) : "memory", "cc"); break;
    }
}

static INLINE void move_all(u8 *to, const u8 *from, u64 count, u32 shift, int down)
{
    switch (shift) {
    case 0: REPEAT("movsb", down, : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc"); break;
    case 1: REPEAT("movsw", down, : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc"); break;
    case 2: REPEAT("movsl", down, : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc"); break;
    default: REPEAT("movsq", down, : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc"); break;
    }
}
#else
typedef u16 __attribute__((aligned(1))) unaligned_u16;
typedef u32 __attribute__((aligned(1))) unaligned_u32;
typedef u64 __attribute__((aligned(1))) unaligned_u64;

/* volatile, or the compiler would call a library that is not there */
#define EACH(type, value) \
    for (; count; count--, to += step, from += step) \
        *(volatile type *)to = (value)

static INLINE void store_all(u8 *to, u64 value, u64 count, u32 shift, int down)
{
    long step = down ? -(1l << shift) : 1l << shift;
    const u8 *from = to;
    switch (shift) {
    case 0: EACH(u8, (u8)value); break;
    case 1: EACH(unaligned_u16, (u16)value); break;
    case 2: EACH(unaligned_u32, (u32)value); break;
    default: EACH(unaligned_u64, value); break;
    }
}

static INLINE void move_all(u8 *to, const u8 *from, u64 count, u32 shift, int down)
{
    long step = down ? -(1l << shift) : 1l << shift;
    switch (shift) {
    case 0: EACH(u8, *from); break;
    case 1: EACH(unaligned_u16, *(const unaligned_u16 *)from); break;
    case 2: EACH(unaligned_u32, *(const unaligned_u32 *)from); break;
    default: EACH(unaligned_u64, *(const unaligned_u64 *)from); break;
    }
}
#endif

static INLINE u64 least(u64 a, u64 b)
{
    return a < b ? a : b;
}

/* Where the host keeps the code at `pc`, or NULL.  A page that the instruction works on may have taken the place of the
 * code's in the table: then the code is looked up once more, and the next iteration does the same for that page. */
static INLINE const u8 *find_code(const struct clock *clock, void *uc, const u8 *state, u64 pc, u32 size)
{
    u64 page = pc & ~(u64)PAGE_MASK, gpa;
    const struct tlb_entry *code = find_translation(clock, state, pc);
    if (code->code != page && clock->translate(uc, pc, PROT_EXECUTE, &gpa) == 0)
        code = find_translation(clock, state, pc);
    return code->code == page && (pc & PAGE_MASK) + size <= PAGE_SIZE ? (const u8 *)(pc + code->addend) : 0;
}

/* Whether the block that runs once more is a string instruction, and which: clock->string says it then.  What was found
 * is kept for as long as no other block runs: until then it is the same code. */
static INLINE int knows_string(struct clock *clock, void *uc, const u8 *state, u64 pc, u32 size)
{
    if (clock->string_time && clock->string_time == clock->executed)
        return 1;
    const u8 *code = find_code(clock, uc, state, pc, size);
    if (code && decode(code, size, read_u32(state, clock->hflags_offset), &clock->string))
        return 1;
    clock->plain_pc = pc;
    return 0;
}

/* Does at most `limit` iterations of the instruction clock->string, and returns how many. */
static INLINE u64 run_string(const struct clock *clock, u8 *state, u64 limit)
{
    struct string_instruction instruction = clock->string;
    u32 hflags = read_u32(state, clock->hflags_offset), eflags = read_u32(state, clock->eflags_offset);
    if ((eflags & (EFLAGS_TF | EFLAGS_RF)) || (hflags & INHIBIT_INTERRUPTS))
        return 0;

    u64 *registers = (u64 *)state, mask = address_mask(instruction.address_bytes);
    int down = *(const int *)(state + DIRECTION_OFFSET) < 0;
    u64 to_offset = registers[RDI] & mask, from_offset = registers[RSI] & mask;
    u64 to = linear_address(state, hflags, &instruction, to_offset, ES, -1);
    u64 from = linear_address(state, hflags, &instruction, from_offset, DS, instruction.override);
    const struct tlb_entry *target = find_translation(clock, state, to);
    const struct tlb_entry *source = find_translation(clock, state, from);
    u64 count = least(registers[RCX] & mask, limit);
    count = least(count, elements_in_page(to, to_offset, mask, instruction.width_shift, down));
    if (target->write != (to & ~(u64)PAGE_MASK))
        return 0;
    if (instruction.is_move) {
        count = least(count, elements_in_page(from, from_offset, mask, instruction.width_shift, down));
        if (source->read != (from & ~(u64)PAGE_MASK))
            return 0;
    }
    if (!count)
        return 0;

    u64 distance = count << instruction.width_shift;
    if (down)
        distance = -distance;
    if (instruction.is_move) {
        move_all((u8 *)(to + target->addend), (const u8 *)(from + source->addend), count, instruction.width_shift, down);
        add_to_register(&registers[RSI], distance, instruction.address_bytes);
    } else {
        store_all((u8 *)(to + target->addend), registers[RAX], count, instruction.width_shift, down);
    }
    add_to_register(&registers[RDI], distance, instruction.address_bytes);
    add_to_register(&registers[RCX], -count, instruction.address_bytes);
    return count;
}
