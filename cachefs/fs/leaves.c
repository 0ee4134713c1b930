/* Names and attributes that need no Python: nodes that the kernel knows and Python has no use for yet, look-ups in
 * folders that are open and watched, and listings.
 *
 * A node is *ours* (a leaf: told to the kernel in a listing or a look-up, nothing else) or *Python's* (an object of
 * inodes.py). Whatever Python is asked about becomes its own; it says so by cachefs_node_own. A leaf costs about a
 * hundred bytes, and a tenth of the time.
 *
 * A look-up is answered from here only where that cannot wait for a disk: openat2(RESOLVE_CACHED) fails when a name is
 * not in the kernel's memory (Linux 5.12), and only folders of local disks are given to cachefs_folder_open.
 */

#define _GNU_SOURCE

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "channel.h"

#ifndef RESOLVE_CACHED
#define RESOLVE_CACHED 0x20
#endif

enum {
	TAG_SHIFT = 48,
	SMALLEST_TABLE = 1024,
	DEVICES = 64,
	FOLDERS = 256, /* open folders: descriptors that the daemon holds, see cachefs_folders_close_idle */
	ENDS = 64,
	LONGEST_NAME = 255, /* of a leaf, and of what is remembered: longer ones (CIFS, NTFS, FUSE) are Python's */
	LONGEST_TOLD = 4095,
	GETDENTS_BYTES = 64 << 10,
};

/* --- nodes ------------------------------------------------------------------------------------------------------ */

struct node {
	uint64_t number, parent, birth_ns;
	uint32_t lookups;
	uint16_t kind; /* type bits of the mode */
	uint8_t device;
	uint8_t name_len; /* 0: Python's, which knows all the rest */
	char name[];
};

static struct node **table;
static size_t slots, nodes;

static size_t slot_of(uint64_t number)
{
	return (size_t)(number * 0x9E3779B97F4A7C15ULL >> 20) & (slots - 1);
}

/* Where the number is, or the free place where it belongs. */
static size_t find_slot(uint64_t number)
{
	size_t slot = slot_of(number);
	while (table[slot] != NULL && table[slot]->number != number)
		slot = (slot + 1) & (slots - 1);
	return slot;
}

static struct node *find_node(uint64_t number)
{
	return slots == 0 ? NULL : table[find_slot(number)];
}

static bool resize(size_t wanted)
{
	struct node **fresh = calloc(wanted, sizeof(*fresh)), **old = table;
	if (fresh == NULL)
		return false;
	size_t old_slots = slots;
	table = fresh;
	slots = wanted;
	for (size_t slot = 0; slot < old_slots; slot++)
		if (old[slot] != NULL)
			table[find_slot(old[slot]->number)] = old[slot];
	free(old);
	return true;
}

static struct node *add_node(uint64_t number, size_t name_len)
{
	if ((nodes + 1) * 4 > slots * 3 && !resize(slots == 0 ? SMALLEST_TABLE : slots * 2))
		return NULL;
	struct node *node = calloc(1, sizeof(*node) + name_len);
	if (node == NULL)
		return NULL;
	node->number = number;
	node->name_len = (uint8_t)name_len;
	table[find_slot(number)] = node;
	nodes++;
	return node;
}

/* Linear probing: what comes behind the freed place moves up, if it may. */
static void remove_node(uint64_t number)
{
	size_t free_slot = find_slot(number);
	if (table[free_slot] == NULL)
		return;
	free(table[free_slot]);
	table[free_slot] = NULL;
	nodes--;
	for (size_t slot = (free_slot + 1) & (slots - 1); table[slot] != NULL; slot = (slot + 1) & (slots - 1)) {
		size_t home = slot_of(table[slot]->number);
		if (((slot - home) & (slots - 1)) >= ((slot - free_slot) & (slots - 1))) {
			table[free_slot] = table[slot];
			table[slot] = NULL;
			free_slot = slot;
		}
	}
	if (slots > SMALLEST_TABLE && nodes * 8 < slots && resize(slots / 2))
		malloc_trim(0);
}

static bool is_leaf(const struct node *node)
{
	return node != NULL && node->name_len != 0;
}

uint64_t cachefs_leaves(void)
{
	uint64_t count = 0;
	for (size_t slot = 0; slot < slots; slot++)
		count += is_leaf(table[slot]);
	return count;
}

/* Python has an object for this number from now on. Returns how often the kernel was told of the leaf that it was until
 * now, which Python has to count; -1 without memory. */
int64_t cachefs_node_own(uint64_t number)
{
	struct node *node = find_node(number);
	if (node != NULL && node->name_len == 0)
		return 0;
	int64_t lookups = node != NULL ? node->lookups : 0;
	if (node != NULL)
		remove_node(number);
	return add_node(number, 0) != NULL ? lookups : -1;
}

void cachefs_node_disown(uint64_t number)
{
	struct node *node = find_node(number);
	if (node != NULL && node->name_len == 0)
		remove_node(number);
}

struct leaf_out {
	uint64_t number, parent, birth_ns, device;
	uint32_t lookups, kind, name_len, padding;
	char name[LONGEST_NAME + 1];
};

static uint64_t device_of(const struct node *node);

static void show(const struct node *node, struct leaf_out *out)
{
	out->number = node->number;
	out->parent = node->parent;
	out->birth_ns = node->birth_ns;
	out->device = device_of(node);
	out->lookups = node->lookups;
	out->kind = node->kind;
	out->name_len = node->name_len;
	memcpy(out->name, node->name, node->name_len);
}

/* Hand a leaf over to Python; 0 when there is none of this number. */
int cachefs_leaf_take(uint64_t number, struct leaf_out *out)
{
	struct node *node = find_node(number);
	if (!is_leaf(node))
		return 0;
	show(node, out);
	uint64_t kept = node->number;
	remove_node(kept);
	return 1;
}

int cachefs_leaf_has(uint64_t number)
{
	return is_leaf(find_node(number));
}

/* The first leaf at or after this place of the table; returns the place after it, 0 when there is none. */
uint64_t cachefs_leaf_next(uint64_t place, struct leaf_out *out)
{
	for (size_t slot = (size_t)place; slot < slots; slot++) {
		if (is_leaf(table[slot])) {
			show(table[slot], out);
			return slot + 1;
		}
	}
	return 0;
}

/* --- devices ---------------------------------------------------------------------------------------------------- */

static struct {
	uint64_t dev;
	uint64_t tag;
} devices[DEVICES];
static int known_devices;

static uint64_t device_of(const struct node *node)
{
	return devices[node->device].dev;
}

static int find_device(uint64_t dev)
{
	for (int index = 0; index < known_devices; index++)
		if (devices[index].dev == dev)
			return index;
	return -1;
}

/* inodes.py: the tag that numbers of this device carry from now on: a device number may stand for another file system
 * than before. One that does not fit stays Python's. */
void cachefs_device_add(uint64_t dev, uint64_t tag)
{
	int index = find_device(dev);
	if (index < 0 && known_devices == DEVICES)
		return;
	if (index < 0)
		index = known_devices++;
	devices[index].dev = dev;
	devices[index].tag = tag;
}

/* The number that inodes.py gives this file; 0 where that takes more than its tag and inode number. */
static uint64_t number_of(int device, uint64_t ino)
{
	if (device < 0 || devices[device].tag >= 0x7ffe || ino >= (uint64_t)1 << TAG_SHIFT || ino <= 1)
		return 0;
	return devices[device].tag << TAG_SHIFT | ino;
}

/* --- attributes ------------------------------------------------------------------------------------------------- */

static const unsigned BASIC_AND_BIRTH = STATX_BASIC_STATS | STATX_BTIME;

static uint64_t nanoseconds(struct statx_timestamp time)
{
	return (uint64_t)time.tv_sec * 1000000000u + time.tv_nsec;
}

static void fill_attr(struct attr *attr, const struct statx *seen, uint64_t number)
{
	*attr = (struct attr){
		.ino = number,
		.size = seen->stx_size,
		.blocks = seen->stx_blocks,
		.atime = (uint64_t)seen->stx_atime.tv_sec,
		.mtime = (uint64_t)seen->stx_mtime.tv_sec,
		.ctime = (uint64_t)seen->stx_ctime.tv_sec,
		.atimensec = seen->stx_atime.tv_nsec,
		.mtimensec = seen->stx_mtime.tv_nsec,
		.ctimensec = seen->stx_ctime.tv_nsec,
		.mode = seen->stx_mode,
		.nlink = seen->stx_nlink,
		.uid = seen->stx_uid,
		.gid = seen->stx_gid,
		.rdev = (uint32_t)makedev(seen->stx_rdev_major, seen->stx_rdev_minor),
		.blksize = seen->stx_blksize,
	};
}

static bool same_file(const struct node *node, const struct statx *seen)
{
	return node->kind == (seen->stx_mode & S_IFMT) && node->birth_ns == nanoseconds(seen->stx_btime);
}

/* The leaf of a file just seen under this name, counted once more; NULL when it is a matter for Python. */
static struct node *tell_leaf(uint64_t number, uint64_t parent, int device, const struct statx *seen, const char *name,
			      size_t name_len)
{
	struct node *node = find_node(number);
	if (name_len > LONGEST_NAME)
		return NULL;
	if (node == NULL) {
		node = add_node(number, name_len);
		if (node == NULL)
			return NULL;
		node->parent = parent;
		node->birth_ns = nanoseconds(seen->stx_btime);
		node->kind = seen->stx_mode & S_IFMT;
		node->device = (uint8_t)device;
		memcpy(node->name, name, name_len);
	}
	if (!is_leaf(node) || !same_file(node, seen) || node->parent != parent || node->name_len != name_len ||
	    memcmp(node->name, name, name_len) != 0)
		return NULL;
	node->lookups++;
	return node;
}

static void give_back(uint64_t number, uint64_t count)
{
	struct node *node = find_node(number);
	if (!is_leaf(node))
		return;
	node->lookups -= count < node->lookups ? (uint32_t)count : node->lookups;
	if (node->lookups == 0)
		remove_node(number);
}

/* --- open folders ----------------------------------------------------------------------------------------------- */

/* Where a number's place is taken by another folder, the later one has it. */
static struct folder {
	uint64_t number, used_ns;
	uint64_t believed_s, ttl_ns;
	int fd, device;
	bool tells_absence;
} folders[FOLDERS];

static struct folder *folder_slot(uint64_t number)
{
	return &folders[(number * 0x9E3779B97F4A7C15ULL >> 32) % FOLDERS];
}

static struct folder *find_folder(uint64_t number)
{
	struct folder *folder = folder_slot(number);
	if (folder->number != number)
		return NULL;
	folder->used_ns = now_ns();
	return folder;
}

static void close_folder(struct folder *folder)
{
	if (folder->number != 0)
		close(folder->fd);
	folder->number = 0;
}

/* Answer look-ups in this folder, which is watched; fd is ours from now on. believed_s is how long the kernel may
 * believe what it is told of a file with one name, ttl_ns of any other. tells_absence: names that are not there are
 * nobody else's matter. */
void cachefs_folder_open(uint64_t number, int fd, uint64_t dev, uint64_t believed_s, uint64_t ttl_ns, int tells_absence)
{
	struct folder *folder = folder_slot(number);
	close_folder(folder);
	*folder = (struct folder){number, now_ns(), believed_s, ttl_ns, fd, find_device(dev), tells_absence != 0};
}

int cachefs_folder_is_open(uint64_t number)
{
	return folder_slot(number)->number == number;
}

void cachefs_folder_close(uint64_t number)
{
	struct folder *folder = folder_slot(number);
	if (folder->number == number)
		close_folder(folder);
}

/* Close what nobody looked into for so long, or everything at 0: a source must be free to be unmounted. */
void cachefs_folders_close_idle(uint64_t idle_ns)
{
	uint64_t now = now_ns();
	for (int index = 0; index < FOLDERS; index++)
		if (folders[index].number != 0 && now - folders[index].used_ns >= idle_ns)
			close_folder(&folders[index]);
}

/* What is kept of moved files at a source's root (fs/homes.py): the mount shows no such name. */
static bool is_reserved(const char *name)
{
	return strcmp(name, ".cachefs-moved") == 0;
}

/* What this name is now, if no disk must be asked for it; errno is ENOENT where it certainly is not there. */
static bool see(const struct folder *folder, const char *name, struct statx *seen)
{
	struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_CACHED | RESOLVE_NO_XDEV};
	int place = (int)syscall(SYS_openat2, folder->fd, name, &how, sizeof(how));
	if (place < 0)
		return false;
	bool done = statx(place, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, BASIC_AND_BIRTH, seen) == 0;
	close(place);
	errno = 0;
	return done && makedev(seen->stx_dev_major, seen->stx_dev_minor) == devices[folder->device].dev;
}

static void set_attr_valid(const struct folder *folder, const struct statx *seen, uint64_t *seconds, uint32_t *nsec)
{
	bool alone = seen->stx_nlink == 1 && !S_ISDIR(seen->stx_mode);
	*seconds = alone ? folder->believed_s : folder->ttl_ns / 1000000000u;
	*nsec = alone ? 0 : (uint32_t)(folder->ttl_ns % 1000000000u);
}

bool answer_lookup(int fd, const struct in_header *header, const char *name)
{
	struct folder *folder = find_folder(header->nodeid);
	size_t room = header->len - sizeof(*header), name_len = strnlen(name, room);
	if (folder == NULL || folder->device < 0 || name_len == 0 || name_len >= room || name_len > LONGEST_NAME)
		return false;
	struct statx seen;
	if (is_reserved(name))
		return false;
	if (!see(folder, name, &seen)) {
		/* The kernel is not to remember it: a name made behind the mount must be found at once. */
		return errno == ENOENT && folder->tells_absence && send_error(fd, header->unique, ENOENT);
	}
	uint64_t number = number_of(folder->device, seen.stx_ino);
	if (number == 0 || tell_leaf(number, header->nodeid, folder->device, &seen, name, name_len) == NULL)
		return false;
	struct entry_out reply = {.nodeid = number, .entry_valid = folder->believed_s};
	set_attr_valid(folder, &seen, &reply.attr_valid, &reply.attr_valid_nsec);
	fill_attr(&reply.attr, &seen, number);
	if (!send_reply(fd, header->unique, &reply, sizeof(reply)))
		give_back(number, 1); /* whoever asked is gone */
	return true;
}

/* A folder that is open and watched; its node is Python's. */
static bool answer_folder(int fd, const struct in_header *header)
{
	struct folder *folder = find_folder(header->nodeid);
	struct statx seen;
	if (folder == NULL || statx(folder->fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, BASIC_AND_BIRTH, &seen) != 0)
		return false;
	struct attr_out reply = {.attr_valid = folder->believed_s};
	fill_attr(&reply.attr, &seen, header->nodeid);
	send_reply(fd, header->unique, &reply, sizeof(reply));
	return true;
}

bool answer_getattr(int fd, const struct in_header *header, const struct getattr_in *asked)
{
	if (answer_folder(fd, header))
		return true;
	struct node *node = find_node(header->nodeid);
	if (!is_leaf(node) || asked->flags & GETATTR_WITH_HANDLE)
		return false;
	struct folder *folder = find_folder(node->parent);
	char name[LONGEST_NAME + 1];
	memcpy(name, node->name, node->name_len);
	name[node->name_len] = '\0';
	struct statx seen;
	if (folder == NULL || folder->device < 0 || !see(folder, name, &seen) || !same_file(node, &seen) ||
	    number_of(folder->device, seen.stx_ino) != node->number)
		return false;
	struct attr_out reply = {0};
	set_attr_valid(folder, &seen, &reply.attr_valid, &reply.attr_valid_nsec);
	fill_attr(&reply.attr, &seen, node->number);
	send_reply(fd, header->unique, &reply, sizeof(reply));
	return true;
}

bool answer_forget(const struct in_header *header, uint64_t count)
{
	if (!is_leaf(find_node(header->nodeid)))
		return false;
	give_back(header->nodeid, count);
	return true;
}

/* What is left in the message is Python's. */
bool answer_batch_forget(struct in_header *header, struct batch_forget_in *batch)
{
	struct forget_one *items = (struct forget_one *)(batch + 1);
	uint32_t room = (header->len - sizeof(*header) - sizeof(*batch)) / sizeof(*items);
	uint32_t count = batch->count < room ? batch->count : room, left = 0;
	for (uint32_t index = 0; index < count; index++) {
		struct forget_one item = items[index];
		if (is_leaf(find_node(item.nodeid)))
			give_back(item.nodeid, item.nlookup);
		else
			items[left++] = item;
	}
	batch->count = left;
	return left == 0;
}

/* --- listings --------------------------------------------------------------------------------------------------- */

struct item {
	uint64_t off;    /* the place of the name: what follows it is what the kernel asks for next */
	uint64_t number; /* set by Python for what is its own; 0: not yet */
	uint64_t dirent_ino;
	uint64_t attr_valid_ns; /* as number */
	struct statx seen;      /* no mask: the name was gone before it could be looked at */
	uint32_t name;          /* where it begins in names */
	uint16_t name_len;
	uint8_t type;
	bool looked_at;
	bool plain; /* what was seen of it is not true any more: its name is all that is told */
};

/* A folder as it was read, in the order of places; behind the first `sorted`, what was added since. */
struct listing {
	size_t count, sorted, stated, room, names_size, names_room;
	struct item *items;
	char *names;
};

enum { FIRST_PLACE = 16 };

static bool is_dot(const char *name, size_t length)
{
	return name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.'));
}

/* A name has the same place in whatever reading of the folder, and wherever its file is: so whoever goes on reading from
 * a place, in another reading than the one that he began with, misses no name that stays and sees none twice. What the
 * source says of places is worth less: a file that moves has none there, and on many file systems (FUSE, CIFS, overlayfs)
 * they are counted anew by whoever opens the folder. FNV-1a, and the last step of MurmurHash3. */
static uint64_t place_of(const char *name, size_t length)
{
	if (is_dot(name, length))
		return length;
	uint64_t hash = 0xcbf29ce484222325ULL;
	for (size_t at = 0; at < length; at++)
		hash = (hash ^ (uint8_t)name[at]) * 0x100000001b3ULL;
	hash = (hash ^ hash >> 33) * 0xff51afd7ed558ccdULL;
	hash = (hash ^ hash >> 33) * 0xc4ceb9fe1a85ec53ULL;
	return FIRST_PLACE + ((hash ^ hash >> 33) >> 2); /* the kernel has 63 bits for it */
}

static bool append(struct listing *listing, const struct dirent64 *entry)
{
	size_t length = strlen(entry->d_name);
	if (is_reserved(entry->d_name) || length > LONGEST_TOLD)
		return true;
	if (listing->count == listing->room) {
		size_t room = listing->room == 0 ? 32 : listing->room * 2;
		struct item *items = realloc(listing->items, room * sizeof(*items));
		if (items == NULL)
			return false;
		listing->items = items;
		listing->room = room;
	}
	if (listing->names_size + length + 1 > listing->names_room) {
		size_t room = listing->names_room * 2 + LONGEST_TOLD + 1;
		char *names = realloc(listing->names, room);
		if (names == NULL)
			return false;
		listing->names = names;
		listing->names_room = room;
	}
	struct item *item = &listing->items[listing->count++];
	memset(item, 0, sizeof(*item));
	item->off = place_of(entry->d_name, length);
	item->dirent_ino = entry->d_ino;
	item->name = (uint32_t)listing->names_size;
	item->name_len = (uint16_t)length;
	item->type = entry->d_type;
	memcpy(listing->names + listing->names_size, entry->d_name, length + 1);
	listing->names_size += length + 1;
	return true;
}

struct sorted {
	uint64_t off;
	const char *name;
	size_t index;
};

static int by_place(const void *one, const void *other)
{
	const struct sorted *a = one, *b = other;
	return a->off != b->off ? (a->off < b->off ? -1 : 1) : strcmp(a->name, b->name);
}

/* Bring everything into order, after names were added. Returns an errno. */
int cachefs_listing_sort(struct listing *listing)
{
	size_t count = listing->count;
	while (listing->sorted < count &&
	       (listing->sorted == 0 || listing->items[listing->sorted - 1].off < listing->items[listing->sorted].off))
		listing->sorted++; /* as what was remembered is */
	if (listing->sorted == count)
		return 0;
	struct sorted *order = malloc(count * sizeof(*order));
	struct item *items = malloc(count * sizeof(*items));
	if (order == NULL || items == NULL) {
		free(order);
		free(items);
		return ENOMEM;
	}
	for (size_t index = 0; index < count; index++)
		order[index] = (struct sorted){listing->items[index].off, listing->names + listing->items[index].name, index};
	qsort(order, count, sizeof(*order), by_place);
	size_t kept = 0;
	for (size_t index = 0; index < count; index++) {
		struct item *item = &listing->items[order[index].index];
		if (index > 0 && strcmp(order[index].name, order[index - 1].name) == 0) {
			listing->stated -= item->looked_at; /* a source that changes may say a name twice */
			continue;
		}
		items[kept++] = *item;
		if (kept > 1 && item->off <= items[kept - 2].off) /* two of one hash: hardly ever */
			items[kept - 1].off = items[kept - 2].off + 1;
	}
	free(order);
	free(listing->items);
	listing->items = items;
	listing->room = count;
	listing->sorted = listing->count = kept;
	return 0;
}

/* The index at which the names after this place begin. */
uint64_t cachefs_listing_after(const struct listing *listing, uint64_t place)
{
	size_t low = 0, high = listing->sorted;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (listing->items[middle].off <= place)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Where this name is; -1 when it is not. */
int64_t cachefs_listing_named(const struct listing *listing, const char *name, uint64_t length)
{
	uint64_t place = place_of(name, length);
	for (uint64_t index = cachefs_listing_after(listing, place - 1); index < listing->sorted; index++, place++) {
		const struct item *item = &listing->items[index];
		if (item->off != place)
			break;
		if (item->name_len == length && memcmp(listing->names + item->name, name, length) == 0)
			return (int64_t)index;
	}
	return -1;
}

static int read_names(struct listing *listing, int folder)
{
	char *buffer = malloc(GETDENTS_BYTES);
	int result = buffer == NULL ? ENOMEM : 0;
	while (result == 0) {
		ssize_t done = getdents64(folder, buffer, GETDENTS_BYTES);
		if (done <= 0) {
			result = done < 0 ? errno : 0;
			break;
		}
		for (ssize_t at = 0; at < done && result == 0;) {
			struct dirent64 *entry = (struct dirent64 *)(buffer + at);
			if (!append(listing, entry))
				result = ENOMEM;
			at += entry->d_reclen;
		}
	}
	free(buffer);
	return result;
}

/* A copy, to which names can be added. */
struct listing *cachefs_listing_copy(const struct listing *listing)
{
	struct listing *copy = malloc(sizeof(*copy));
	if (copy == NULL)
		return NULL;
	*copy = *listing;
	copy->items = malloc(listing->room * sizeof(*copy->items) + 1);
	copy->names = malloc(listing->names_room + 1);
	if (copy->items == NULL || copy->names == NULL) {
		free(copy->items);
		free(copy->names);
		free(copy);
		return NULL;
	}
	memcpy(copy->items, listing->items, listing->count * sizeof(*copy->items));
	memcpy(copy->names, listing->names, listing->names_size);
	return copy;
}

static void set_looked_at(struct listing *listing, struct item *item)
{
	listing->stated += !item->looked_at;
	__atomic_store_n(&item->looked_at, true, __ATOMIC_RELEASE);
}

/* A regular file that the source does not have, or not as it is shown: its name is all that is told, and takes the place
 * of any other of that name. Each is added once; sort them in when all were. Returns an errno. */
int cachefs_listing_add(struct listing *listing, const char *name, uint64_t length, uint64_t number)
{
	int64_t index = cachefs_listing_named(listing, name, length);
	if (index < 0) {
		struct dirent64 entry = {.d_type = DT_REG};
		if (length > LONGEST_NAME)
			return ENAMETOOLONG;
		memcpy(entry.d_name, name, length);
		index = (int64_t)listing->count;
		if (!append(listing, &entry))
			return ENOMEM;
	}
	struct item *item = &listing->items[index];
	item->dirent_ino = number;
	item->type = DT_REG;
	item->seen.stx_mask = 0;
	set_looked_at(listing, item);
	return 0;
}

/* What was seen of this item is not to be told; it may be looked at again. */
void cachefs_listing_tell_name_only(struct listing *listing, uint64_t index)
{
	listing->items[index].plain = true;
}

void cachefs_listing_free(struct listing *listing)
{
	if (listing == NULL)
		return;
	free(listing->items);
	free(listing->names);
	free(listing);
}

static int by_inode(const void *one, const void *other)
{
	const struct item *a = *(struct item *const *)one, *b = *(struct item *const *)other;
	return a->dirent_ino != b->dirent_ino ? (a->dirent_ino < b->dirent_ino ? -1 : 1) : 0;
}

/* In a thread, one at a time: attributes of the next `most` names from begin on, in the order in which a disk has them.
 * Returns an errno. */
int cachefs_listing_stat(struct listing *listing, int folder, uint64_t begin, size_t most)
{
	size_t room = listing->count - begin < most ? listing->count - begin : most, count = 0;
	struct item **items = malloc((room + 1) * sizeof(*items));
	if (items == NULL)
		return ENOMEM;
	for (size_t index = begin; index < listing->count && count < room; index++)
		if (!listing->items[index].looked_at)
			items[count++] = &listing->items[index];
	qsort(items, count, sizeof(*items), by_inode);
	int result = 0;
	for (size_t index = 0; index < count && result == 0; index++) {
		struct item *item = items[index];
		const char *name = listing->names + item->name;
		if (!is_dot(name, item->name_len) &&
		    statx(folder, name, AT_SYMLINK_NOFOLLOW, BASIC_AND_BIRTH, &item->seen) != 0) {
			item->seen.stx_mask = 0;
			result = errno == ENOENT ? 0 : errno;
		}
	}
	for (size_t index = 0; index < count && result == 0; index++) {
		items[index]->plain = false;
		set_looked_at(listing, items[index]);
	}
	free(items);
	return result;
}

/* In a thread: read an open folder (for reading, not O_PATH), and look at the first `most` of it. Returns an errno, and
 * the listing where that is 0. */
int cachefs_listing_read(int folder, size_t most, struct listing **out)
{
	struct listing *listing = calloc(1, sizeof(*listing));
	if (listing == NULL)
		return ENOMEM;
	int result = read_names(listing, folder);
	if (result == 0)
		result = cachefs_listing_sort(listing);
	if (result == 0)
		result = cachefs_listing_stat(listing, folder, 0, most);
	if (result != 0) {
		cachefs_listing_free(listing);
		return result;
	}
	*out = listing;
	return 0;
}

uint64_t cachefs_listing_count(const struct listing *listing)
{
	return listing->count;
}

uint64_t cachefs_listing_stated(const struct listing *listing)
{
	return listing->stated;
}

int cachefs_listing_is_looked_at(const struct listing *listing, uint64_t index)
{
	return __atomic_load_n(&listing->items[index].looked_at, __ATOMIC_ACQUIRE);
}

/* One item, for Python. Returns the length of its name; 0 when it was gone, or is . or .. */
int cachefs_listing_item(const struct listing *listing, uint64_t index, struct statx *seen, char *name)
{
	const struct item *item = &listing->items[index];
	const char *found = listing->names + item->name;
	if (is_dot(found, item->name_len) || item->seen.stx_mask == 0)
		return 0;
	*seen = item->seen;
	memcpy(name, found, item->name_len);
	return item->name_len;
}

/* Python's answer for an item: its number, which it has counted as told, and how long its attributes hold. */
void cachefs_listing_set(struct listing *listing, uint64_t index, uint64_t number, uint64_t attr_valid_ns)
{
	listing->items[index].number = number;
	listing->items[index].attr_valid_ns = attr_valid_ns;
}

static size_t direntplus_size(size_t name_len)
{
	return (sizeof(struct direntplus_out) + name_len + 7) & ~(size_t)7;
}

/* The end of what fits into a reply of this size, from begin on, as far as it was looked at. */
uint64_t cachefs_listing_fits(const struct listing *listing, uint64_t begin, uint64_t size)
{
	uint64_t index = begin, used = 0;
	for (; index < listing->count && cachefs_listing_is_looked_at(listing, index); index++) {
		used += direntplus_size(listing->items[index].name_len);
		if (used > size)
			break;
	}
	return index;
}

static uint64_t item_number(const struct item *item, int *device)
{
	*device = find_device(makedev(item->seen.stx_dev_major, item->seen.stx_dev_minor));
	return number_of(*device, item->seen.stx_ino);
}

/* The next item at or after begin, before end, that is a matter for Python; end when there is none. files: regular
 * files are, for something in this folder is cached; folders: they are, for this listing is only remembered. */
uint64_t cachefs_listing_strange(const struct listing *listing, uint64_t begin, uint64_t end, uint64_t parent, int files,
				 int folders_too)
{
	for (uint64_t index = begin; index < end; index++) {
		const struct item *item = &listing->items[index];
		const char *name = listing->names + item->name;
		if (is_dot(name, item->name_len) || item->seen.stx_mask == 0 || item->plain)
			continue;
		int device;
		uint64_t number = item_number(item, &device);
		const struct node *node = number != 0 ? find_node(number) : NULL;
		if (number == 0 || item->name_len > LONGEST_NAME || (files && S_ISREG(item->seen.stx_mode)) ||
		    (folders_too && S_ISDIR(item->seen.stx_mode)) ||
		    (node != NULL && (!is_leaf(node) || !same_file(node, &item->seen) || node->parent != parent ||
				      node->name_len != item->name_len ||
				      memcmp(node->name, name, item->name_len) != 0)))
			return index;
	}
	return end;
}

static size_t put(char *place, const struct item *item, const char *name, const struct entry_out *entry, uint64_t ino)
{
	size_t size = direntplus_size(item->name_len);
	memset(place, 0, size);
	struct direntplus_out out = {.dirent = {ino, item->off, item->name_len, item->type}};
	if (entry != NULL)
		out.entry = *entry;
	memcpy(place, &out, sizeof(out));
	memcpy(place + sizeof(out), name, item->name_len);
	return size;
}

/* Folders whose last name was just told, and the place after it. */
static struct end {
	uint64_t number, off;
} ends[ENDS];

static struct end *end_slot(uint64_t number)
{
	return &ends[(number * 0x9E3779B97F4A7C15ULL >> 32) % ENDS];
}

static void note_end(uint64_t number, uint64_t off)
{
	*end_slot(number) = (struct end){number, off};
}

/* Put [begin, end) into the reply to this request; the kernel then knows each of them once more. own and above are
 * the numbers of . and .., believed_s and ttl_ns as in cachefs_folder_open. Returns 0 or an errno. */
int cachefs_listing_answer(struct listing *listing, uint64_t unique, uint64_t begin, uint64_t end, uint64_t own,
			   uint64_t above, uint64_t name_valid_ns, uint64_t ttl_ns)
{
	size_t room = 0;
	for (uint64_t index = begin; index < end; index++)
		room += direntplus_size(listing->items[index].name_len);
	char *payload = malloc(room + 1);
	if (payload == NULL)
		return ENOMEM;
	size_t used = 0;
	for (uint64_t index = begin; index < end; index++) {
		struct item *item = &listing->items[index];
		const char *name = listing->names + item->name;
		if (is_dot(name, item->name_len)) {
			used += put(payload + used, item, name, NULL, item->name_len == 1 ? own : above);
			continue;
		}
		uint64_t number = item->number, valid = item->attr_valid_ns;
		item->number = 0; /* counted for this reply only */
		int device;
		if (number == 0 && item->seen.stx_mask != 0 && !item->plain) {
			number = item_number(item, &device);
			if (tell_leaf(number, own, device, &item->seen, name, item->name_len) == NULL)
				number = 0;
			bool alone = item->seen.stx_nlink == 1 && !S_ISDIR(item->seen.stx_mode);
			valid = alone ? name_valid_ns : ttl_ns;
		}
		if (number == 0) { /* its name is all that is told: the kernel asks for the rest if somebody wants it */
			uint64_t shown = item->seen.stx_mask != 0 ? item_number(item, &device) : 0;
			used += put(payload + used, item, name, NULL, shown != 0 ? shown : item->dirent_ino);
			continue;
		}
		struct entry_out entry = {
			.nodeid = number,
			.entry_valid = name_valid_ns / 1000000000u,
			.entry_valid_nsec = (uint32_t)(name_valid_ns % 1000000000u),
			.attr_valid = valid / 1000000000u,
			.attr_valid_nsec = (uint32_t)(valid % 1000000000u),
		};
		fill_attr(&entry.attr, &item->seen, number);
		item->type = (uint8_t)(item->seen.stx_mode >> 12);
		used += put(payload + used, item, name, &entry, number);
	}
	if (end == listing->count && end > begin)
		note_end(own, listing->items[end - 1].off);
	return attach_reply(unique, payload, used) ? 0 : ENOENT;
}

/* The kernel asks once more at the end of every folder. */
bool answer_readdir(int fd, const struct in_header *header, const struct read_in *asked)
{
	struct end *found = end_slot(header->nodeid);
	if (found->number == header->nodeid && asked->offset == 0)
		found->number = 0; /* another reader, who may find more */
	if (found->number != header->nodeid || found->off != asked->offset)
		return false;
	found->number = 0;
	send_reply(fd, header->unique, NULL, 0);
	return true;
}

/* --- listings that are remembered ------------------------------------------------------------------------------- */

/* How a listing is kept on the disk: a head with the folder's own attributes, then the names. Devices by their tag, for
 * device numbers change from one start of the machine to the next. */
enum { PACKED_VERSION = 0x31664c63, ABSENT_MAJOR = 0xfff };

struct __attribute__((packed)) packed_item {
	uint64_t off, ino, size, blocks;
	int64_t atime, mtime, ctime, btime;
	uint32_t atime_ns, mtime_ns, ctime_ns, btime_ns;
	uint32_t nlink, uid, gid, rdev_major, rdev_minor, blksize;
	uint16_t mode, tag;
	uint8_t type, name_len;
};

struct __attribute__((packed)) packed_head {
	uint32_t version, count;
	struct packed_item own;
};

static void pack_item(struct packed_item *out, const struct statx *seen, uint64_t off, uint8_t type, size_t name_len)
{
	int device = find_device(makedev(seen->stx_dev_major, seen->stx_dev_minor));
	*out = (struct packed_item){
		.off = off,
		.ino = seen->stx_ino,
		.size = seen->stx_size,
		.blocks = seen->stx_blocks,
		.atime = seen->stx_atime.tv_sec,
		.mtime = seen->stx_mtime.tv_sec,
		.ctime = seen->stx_ctime.tv_sec,
		.btime = seen->stx_btime.tv_sec,
		.atime_ns = seen->stx_atime.tv_nsec,
		.mtime_ns = seen->stx_mtime.tv_nsec,
		.ctime_ns = seen->stx_ctime.tv_nsec,
		.btime_ns = seen->stx_btime.tv_nsec,
		.nlink = seen->stx_nlink,
		.uid = seen->stx_uid,
		.gid = seen->stx_gid,
		.rdev_major = seen->stx_rdev_major,
		.rdev_minor = seen->stx_rdev_minor,
		.blksize = seen->stx_blksize,
		.mode = seen->stx_mode,
		.tag = device < 0 ? 0xffff : (uint16_t)devices[device].tag,
		.type = type,
		.name_len = (uint8_t)name_len,
	};
}

static void unpack_item(struct statx *out, const struct packed_item *item)
{
	uint64_t dev = makedev(ABSENT_MAJOR, item->tag); /* union.py knows */
	for (int index = 0; index < known_devices; index++)
		if (devices[index].tag == item->tag)
			dev = devices[index].dev; /* the latest */
	*out = (struct statx){
		.stx_mask = BASIC_AND_BIRTH,
		.stx_ino = item->ino,
		.stx_size = item->size,
		.stx_blocks = item->blocks,
		.stx_atime = {.tv_sec = item->atime, .tv_nsec = item->atime_ns},
		.stx_mtime = {.tv_sec = item->mtime, .tv_nsec = item->mtime_ns},
		.stx_ctime = {.tv_sec = item->ctime, .tv_nsec = item->ctime_ns},
		.stx_btime = {.tv_sec = item->btime, .tv_nsec = item->btime_ns},
		.stx_nlink = item->nlink,
		.stx_uid = item->uid,
		.stx_gid = item->gid,
		.stx_rdev_major = item->rdev_major,
		.stx_rdev_minor = item->rdev_minor,
		.stx_blksize = item->blksize,
		.stx_mode = item->mode,
		.stx_dev_major = major(dev),
		.stx_dev_minor = minor(dev),
	};
}

uint64_t cachefs_listing_packed_size(const struct listing *listing)
{
	return sizeof(struct packed_head) + listing->count * sizeof(struct packed_item) + listing->names_size;
}

/* In a thread: a listing from the start of an open folder, wholly looked at. Returns how many bytes were written, 0 when
 * it is not that, or has a name that is too long; names that were gone are left out. */
uint64_t cachefs_listing_pack(const struct listing *listing, int folder, char *out)
{
	struct statx own;
	if (listing->stated != listing->count ||
	    statx(folder, "", AT_EMPTY_PATH, BASIC_AND_BIRTH, &own) != 0)
		return 0;
	struct packed_head head = {.version = PACKED_VERSION};
	char *place = out + sizeof(head);
	for (size_t index = 0; index < listing->count; index++) {
		const struct item *item = &listing->items[index];
		const char *name = listing->names + item->name;
		if (item->seen.stx_mask == 0 && !is_dot(name, item->name_len))
			continue;
		if (item->name_len > LONGEST_NAME)
			return 0;
		struct packed_item packed;
		pack_item(&packed, &item->seen, item->off, item->type, item->name_len);
		memcpy(place, &packed, sizeof(packed));
		memcpy(place + sizeof(packed), name, item->name_len);
		place += sizeof(packed) + item->name_len;
		head.count++;
	}
	pack_item(&head.own, &own, 0, 0, 0);
	memcpy(out, &head, sizeof(head));
	return (uint64_t)(place - out);
}

/* The folder's own attributes as they were packed; 0 when this is no such thing. */
int cachefs_packed_own(const char *packed, uint64_t size, struct statx *seen)
{
	struct packed_head head;
	if (size < sizeof(head))
		return 0;
	memcpy(&head, packed, sizeof(head));
	unpack_item(seen, &head.own);
	return head.version == PACKED_VERSION;
}

/* The listing as it was packed; NULL when this is no such thing. */
struct listing *cachefs_listing_unpack(const char *packed, uint64_t size)
{
	struct statx own;
	struct listing *listing = calloc(1, sizeof(*listing));
	if (listing == NULL || !cachefs_packed_own(packed, size, &own)) {
		free(listing);
		return NULL;
	}
	struct packed_head head;
	memcpy(&head, packed, sizeof(head));
	const char *place = packed + sizeof(head), *end = packed + size;
	for (uint32_t index = 0; index < head.count; index++) {
		struct packed_item item;
		struct dirent64 entry = {0};
		bool fits = (size_t)(end - place) >= sizeof(item);
		if (fits)
			memcpy(&item, place, sizeof(item));
		if (!fits || (size_t)(end - place) < sizeof(item) + item.name_len) {
			cachefs_listing_free(listing);
			return NULL;
		}
		entry.d_ino = item.ino;
		entry.d_type = item.type;
		memcpy(entry.d_name, place + sizeof(item), item.name_len);
		size_t before = listing->count; /* one is left out, see append */
		if (!append(listing, &entry)) {
			cachefs_listing_free(listing);
			return NULL;
		}
		if (listing->count > before && !is_dot(entry.d_name, item.name_len))
			unpack_item(&listing->items[before].seen, &item);
		if (listing->count > before)
			set_looked_at(listing, &listing->items[before]);
		place += sizeof(item) + item.name_len;
	}
	if (cachefs_listing_sort(listing) != 0) {
		cachefs_listing_free(listing);
		return NULL;
	}
	return listing;
}
