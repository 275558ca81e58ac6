/* ACPI: the host's tables, put into RAM by the host's script (QEMU's table-loader in fw_cfg).
 *
 * The script allocates files, writes the address of one into another, and completes checksums.  Here every file has
 * whole pages of its own, the highest that are free below 4 GiB; the one that begins as a FACS does lies in memory of
 * another type, which an operating system keeps for ever.  What a search must find (the RSDP) goes to shadow RAM at
 * E0000h, which is no RAM of the guest and cannot be written any more afterwards.
 *
 * Nothing of the script is believed: every field is inside a file that the script has allocated, or the firmware stops.
 */
#include "firmware.h"
#include "../guests/lib/console.h"
#include "../guests/lib/x86/pci_config.h"
#include "../guests/lib/string.h"

enum command { ALLOCATE = 1, ADD_POINTER = 2, ADD_CHECKSUM = 3 };
enum zone { ZONE_HIGH = 1, ZONE_SEARCHED = 2 };

#define MAX_FILE_BYTES (256 * 1024ul)
#define SEARCHED_BASE 0xe0000ul
#define SEARCHED_END 0xe4000ul
#define RSDP_STEP 16
#define RSDP_SUMMED_BYTES 20

/* The i440FX's register for E0000h to E7FFFh; the low half is the lower 16 KiB. */
#define HOST_BRIDGE ((pci_function)0)
#define PAM_E0000 0x5e
enum { PAM_FROM_RAM = 1 << 0, PAM_TO_RAM = 1 << 1 };

static const struct acpi_file *find(char *name)
{
    name[ACPI_NAME_BYTES - 1] = 0;
    for (u32 i = 0; i < LOW->acpi_file_count; i++)
        if (string_equal(LOW->acpi_files[i].name, name))
            return &LOW->acpi_files[i];
    return NULL;
}

/* The bytes [offset, offset + length) of a file. */
static u8 *bytes_of(char *name, u64 offset, u64 length)
{
    const struct acpi_file *file = find(name);
    if (!file)
        fail(EXIT_BAD_BOARD, "the table-loader must allocate a file before it names it");
    if (offset > file->size || length > file->size - offset)
        fail(EXIT_BAD_BOARD, "the table-loader must stay within its files");
    return (u8 *)file->address + offset;
}

static u64 place_high(u64 size, int is_facs)
{
    u64 address = memory_take(size, is_facs ? MEMORY_ACPI_NVS : MEMORY_ACPI_TABLES);
    if (!address)
        fail(EXIT_BAD_PAYLOAD, "the guest leaves no room for ACPI tables below 4 GiB");
    return address;
}

static u64 place_searched(u64 size, u64 alignment)
{
    u64 address = align_up(LOW->acpi_searched_end, alignment);
    if (address > SEARCHED_END || size > SEARCHED_END - address)
        fail(EXIT_BAD_BOARD, "the table-loader must not want more than 16 KiB below 1 MiB");
    LOW->acpi_searched_end = address + size;
    return address;
}

static void allocate(struct loader_command *command)
{
    char signature[4] = {0};
    u64 alignment = command->allocate.alignment;
    if (find(command->file) || LOW->acpi_file_count == MAX_ACPI_FILES)
        fail(EXIT_BAD_BOARD, "the table-loader must allocate at most 8 files, and each of them once");
    if (!alignment || alignment & (alignment - 1) || alignment > PAGE_SIZE)
        fail(EXIT_BAD_BOARD, "the table-loader must align by a power of two up to 4096");
    s64 size = fw_cfg_open(command->file);
    if (size < 1 || (u64)size > MAX_FILE_BYTES)
        fail(EXIT_BAD_BOARD, "the table-loader's files must be in fw_cfg and have 1 byte to 256 KiB");

    u64 head = min_u64((u64)size, sizeof(signature));
    fw_cfg_read(signature, head);
    int is_facs = memcmp(signature, "FACS", sizeof(signature)) == 0;
    u64 address = command->allocate.zone == ZONE_SEARCHED ? place_searched((u64)size, alignment)
                                                          : place_high((u64)size, is_facs);
    memcpy((void *)address, signature, head);
    fw_cfg_read((void *)(address + head), (u64)size - head);

    struct acpi_file *file = &LOW->acpi_files[LOW->acpi_file_count++];
    memcpy(file->name, command->file, ACPI_NAME_BYTES);
    file->address = address;
    file->size = (u64)size;
}

/* A field that holds an offset into the other file becomes an address. */
static void add_pointer(struct loader_command *command)
{
    u64 size = command->pointer.size;
    if (size != 1 && size != 2 && size != 4 && size != 8)
        fail(EXIT_BAD_BOARD, "the table-loader's pointers must have 1, 2, 4 or 8 bytes");
    u64 value = (u64)bytes_of(command->pointer.target, 0, 0);
    u8 *field = bytes_of(command->file, command->pointer.offset, size);
    for (u64 i = 0; i < size; i++) {
        value += field[i];
        field[i] = (u8)value;
        value >>= 8;
    }
}

static void add_checksum(struct loader_command *command)
{
    u8 *sum = bytes_of(command->file, command->checksum.offset, 1);
    const u8 *bytes = bytes_of(command->file, command->checksum.start, command->checksum.length);
    u8 total = 0;
    for (u64 i = 0; i < command->checksum.length; i++)
        total += bytes[i];
    *sum -= total;
}

static void carry_out(struct loader_command *command)
{
    switch (command->command) {
    case ALLOCATE:
        allocate(command);
        break;
    case ADD_POINTER:
        add_pointer(command);
        break;
    case ADD_CHECKSUM:
        add_checksum(command);
        break;
    default: /* commands of later versions concern what this board does not have */
        break;
    }
}

/* As an operating system looks for it: a signature at a multiple of 16, and 20 bytes that add up to zero. */
static u64 find_rsdp(void)
{
    for (u64 at = SEARCHED_BASE; at + RSDP_SUMMED_BYTES <= LOW->acpi_searched_end; at += RSDP_STEP) {
        u8 total = 0;
        for (u64 i = 0; i < RSDP_SUMMED_BYTES; i++)
            total += ((const u8 *)at)[i];
        if (!total && memcmp((const void *)at, "RSD PTR ", 8) == 0)
            return at;
    }
    return 0;
}

void acpi_start(void)
{
    s64 size = fw_cfg_open("etc/table-loader");
    if (size <= 0)
        return;
    u64 count = (u64)size / sizeof(struct loader_command);
    if (count > MAX_LOADER_COMMANDS)
        fail(EXIT_BAD_BOARD, "the table-loader must have at most 64 commands");
    fw_cfg_read(LOW->loader_commands, count * sizeof(struct loader_command));

    LOW->acpi_searched_end = SEARCHED_BASE;
    pci_write8(HOST_BRIDGE, PAM_E0000, PAM_FROM_RAM | PAM_TO_RAM);
    for (u64 i = 0; i < count; i++)
        carry_out(&LOW->loader_commands[i]);
    LOW->acpi_rsdp = find_rsdp();
    pci_write8(HOST_BRIDGE, PAM_E0000, PAM_FROM_RAM);
    if (LOW->acpi_rsdp)
        print("acpi: tables at %lxh, found from %lxh\n", LOW->acpi_files[0].address, LOW->acpi_rsdp);
}
