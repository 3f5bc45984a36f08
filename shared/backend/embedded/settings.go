package embedded

import "strconv"

const (
	minCache = 128 << 20 // PostgreSQL's own default
	maxCache = 2 << 30   // the system caches files as well, so a larger cache gains little
	minWAL   = 1 << 30   // PostgreSQL's own default
	maxWAL   = 4 << 30   // recovery of this much after a crash takes about a minute
)

// sized returns the settings that depend on the memory for the server's cache; 0 means PostgreSQL's default.
//
//   - shared_buffers is the cache. The log's indexes take new entries at random places, and each page that is not in the
//     cache is read and written again for one entry.
//   - max_wal_size is the size of the log between checkpoints under load. After each checkpoint the first change of a
//     page logs the whole page, so checkpoints should be rare. Four times the cache is enough, since a checkpoint writes
//     the cache at most once.
//   - checkpoint_timeout makes checkpoints rare when there is little load. A start after a crash still reads no more of
//     the log than max_wal_size.
//
// wal_compression stays off: it saves disk space but costs processor time, which is scarce where all services share a
// machine.
func sized(cache int64) map[string]string {
	if cache == 0 {
		cache = minCache
	}
	cache = min(max(cache, minCache), maxCache)
	megabytes := func(n int64) string { return strconv.FormatInt(n>>20, 10) + "MB" }
	return map[string]string{
		"shared_buffers":     megabytes(cache),
		"max_wal_size":       megabytes(min(max(4*cache, minWAL), maxWAL)),
		"checkpoint_timeout": "15min",
	}
}
