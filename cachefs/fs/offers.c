/* Opens, closes and reads that need no Python.
 *
 * routing.py *offers* an inode here once it knows how the next open for reading is to be answered: by the kernel itself
 * from a backing file (passthrough), or by the daemon. All handles of an offer have its number. While the offer stands,
 * opens and closes are counted here; once it is withdrawn (something changed, or it has long been idle), every request
 * goes to Python again, with the handles that are still open.
 *
 * A read is answered from here if the kernel has all of it in memory (RWF_NOWAIT never waits for a disk).
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "channel.h"

enum {
	OFFERS = 1024,
	HEADS = 1024,
	READ_BYTES = 1 << 20,
};

/* A handle: this mark, the offer's turn in its place, and its place. The marks of channel.c are bits 62 and above. */
#define OFFER_MARK ((uint64_t)1 << 59)
#define TURN_SHIFT 16

struct offer {
	uint64_t number, handle, expires_ns, used_ns, opens, reads, bytes;
	uint32_t open, open_flags;
	int32_t backing_id;
	int fd, next;
	bool taken, standing;
};

static struct offer offers[OFFERS];
static int heads[HEADS]; /* place + 1 of the first offer with this hash */
static uint64_t turns;
static char *read_buffer;

static int *head_of(uint64_t number)
{
	return &heads[(number * 0x9E3779B97F4A7C15ULL >> 32) % HEADS];
}

static struct offer *find_offer(uint64_t number)
{
	for (int place = *head_of(number); place != 0; place = offers[place - 1].next)
		if (offers[place - 1].number == number)
			return &offers[place - 1];
	return NULL;
}

static struct offer *by_handle(uint64_t handle)
{
	struct offer *offer = &offers[handle % OFFERS];
	return handle & OFFER_MARK && offer->taken && offer->handle == handle ? offer : NULL;
}

static void unlink_offer(struct offer *offer)
{
	int *place = head_of(offer->number), wanted = (int)(offer - offers) + 1;
	while (*place != wanted)
		place = &offers[*place - 1].next;
	*place = offer->next;
	offer->standing = false;
}

/* Offer an inode to readers; returns the handle, 0 when there is no room. fd is read from until the offer is
 * withdrawn, -1 for none; expires_ns is a time of CLOCK_MONOTONIC after which Python is asked. */
uint64_t cachefs_offer(uint64_t number, uint32_t open_flags, int32_t backing_id, int fd, uint64_t expires_ns)
{
	for (int tries = 0; tries < OFFERS; tries++) {
		uint64_t turn = ++turns;
		struct offer *offer = &offers[turn % OFFERS];
		if (offer->taken)
			continue;
		int *head = head_of(number);
		*offer = (struct offer){
			.number = number,
			.handle = OFFER_MARK | (turn & 0xffffffff) << TURN_SHIFT | turn % OFFERS,
			.expires_ns = expires_ns,
			.used_ns = now_ns(),
			.open_flags = open_flags | OPEN_NOFLUSH,
			.backing_id = backing_id,
			.fd = fd,
			.next = *head,
			.taken = true,
			.standing = true,
		};
		*head = (int)(offer - offers) + 1;
		return offer->handle;
	}
	return 0;
}

void cachefs_offer_renew(uint64_t handle, uint64_t expires_ns)
{
	by_handle(handle)->expires_ns = expires_ns;
}

/* Python answers an open with this handle itself. */
void cachefs_offer_opened(uint64_t handle)
{
	struct offer *offer = by_handle(handle);
	offer->open++;
	offer->opens++;
}

struct usage {
	uint64_t opens, reads, bytes, open, idle_ns;
};

/* What was counted since the last call, and how many handles are open now. */
void cachefs_offer_usage(uint64_t handle, struct usage *out)
{
	struct offer *offer = by_handle(handle);
	*out = (struct usage){offer->opens, offer->reads, offer->bytes, offer->open,
			      offer->open != 0 ? 0 : now_ns() - offer->used_ns};
	offer->opens = offer->reads = offer->bytes = 0;
}

/* Python answers everything from now on; the handles that are open keep their number until cachefs_offer_end. */
void cachefs_offer_withdraw(uint64_t handle)
{
	struct offer *offer = by_handle(handle);
	if (offer->standing)
		unlink_offer(offer);
}

/* No handle has this number any more. */
void cachefs_offer_end(uint64_t handle)
{
	struct offer *offer = by_handle(handle);
	if (offer->standing)
		unlink_offer(offer);
	offer->taken = false;
}

bool answer_open(int fd, const struct in_header *header, const struct open_in *asked)
{
	struct offer *offer = find_offer(header->nodeid);
	if (offer == NULL || (asked->flags & O_ACCMODE) != O_RDONLY || asked->flags & (O_TRUNC | O_DIRECT))
		return false;
	if (now_ns() >= offer->expires_ns)
		return false;
	struct open_out reply = {offer->handle, offer->open_flags, offer->backing_id};
	offer->open++;
	if (send_reply(fd, header->unique, &reply, sizeof(reply)))
		offer->opens++;
	else
		offer->open--; /* whoever asked is gone */
	offer->used_ns = now_ns();
	return true;
}

/* Python answers an open or create: what the kernel is told of a handle that is an offer's. */
bool edit_open(struct open_out *reply)
{
	struct offer *offer = by_handle(reply->fh);
	if (offer == NULL)
		return false;
	uint32_t keep = offer->backing_id == 0 ? reply->open_flags & OPEN_KEEP_CACHE : 0; /* Python knows what is kept */
	reply->open_flags = (offer->open_flags & ~(uint32_t)OPEN_KEEP_CACHE) | keep;
	reply->backing_id = offer->backing_id;
	return true;
}

bool answer_release(int fd, const struct in_header *header, const struct release_in *asked)
{
	struct offer *offer = by_handle(asked->fh);
	if (offer == NULL || !offer->standing || offer->open == 0)
		return false;
	offer->open--;
	offer->used_ns = now_ns();
	send_reply(fd, header->unique, NULL, 0);
	return true;
}

bool answer_read(int fd, const struct in_header *header, const struct read_in *asked)
{
	struct offer *offer = by_handle(asked->fh);
	if (offer == NULL || !offer->standing || offer->fd < 0 || asked->size > READ_BYTES)
		return false;
	if (read_buffer == NULL && posix_memalign((void **)&read_buffer, 4096, READ_BYTES) != 0)
		return false;
	struct iovec part = {read_buffer, asked->size};
	if (preadv2(offer->fd, &part, 1, (off_t)asked->offset, RWF_NOWAIT) != (ssize_t)asked->size)
		return false; /* not in memory, or the end of the file */
	offer->reads++;
	offer->bytes += asked->size;
	offer->used_ns = now_ns();
	send_reply(fd, header->unique, read_buffer, asked->size);
	return true;
}
