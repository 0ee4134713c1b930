/* What the parts of the channel say to one another; see channel.c for the whole.
 *
 * Everything but cachefs_listing_read and cachefs_listing_stat runs on the event loop's thread: in its read of the
 * device, in its write of a reply, or called by Python there. So nothing here is locked.
 */
#ifndef CACHEFS_CHANNEL_H
#define CACHEFS_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "wire.h"

#pragma GCC visibility push(hidden)

/* channel.c */
bool send_reply(int fd, uint64_t unique, const void *payload, size_t size);
bool send_error(int fd, uint64_t unique, int error);
bool attach_reply(uint64_t unique, void *payload, size_t size);
uint64_t now_ns(void);

/* leaves.c; each returns whether it has answered (or, for FORGET, whether nothing is left of it to be told) */
bool answer_lookup(int fd, const struct in_header *header, const char *name);
bool answer_getattr(int fd, const struct in_header *header, const struct getattr_in *asked);
bool answer_readdir(int fd, const struct in_header *header, const struct read_in *asked);
bool answer_forget(const struct in_header *header, uint64_t count);
bool answer_batch_forget(struct in_header *header, struct batch_forget_in *batch);

/* offers.c */
bool answer_open(int fd, const struct in_header *header, const struct open_in *asked);
bool answer_release(int fd, const struct in_header *header, const struct release_in *asked);
bool answer_read(int fd, const struct in_header *header, const struct read_in *asked);
bool edit_open(struct open_out *reply);

#pragma GCC visibility pop

#endif
