package embedded

import "strconv"

const (
	minCache = 128 << 20 // PostgreSQL's own default
	maxCache = 2 << 30   // the system caches files as well, so a larger cache gains little
	minWAL   = 1 << 30   // PostgreSQL's own default
	maxWAL   = 4 << 30   // recovery of this much after a crash takes about a minute
)

// sized returns the settings for a server with a cache of the given number of bytes (0: minCache). A number below
// minCache or above maxCache is replaced by that limit. In this comment, checkpoints are those of PostgreSQL, and the
// WAL is PostgreSQL's write-ahead log.
//
//   - shared_buffers is the cache. The indexes of event logs get new entries at random places. A page that is not in
//     the cache has to be read, and later written, for a single entry.
//   - max_wal_size is how much WAL is written, under load, from one checkpoint to the next. The first change of a page
//     after a checkpoint writes the whole page to the WAL, so checkpoints should be rare. Four times the cache is
//     enough: a checkpoint writes at most the whole cache, so checkpoints write at most a quarter as many bytes as the
//     WAL. The setting is never below minWAL or above maxWAL.
//   - checkpoint_timeout makes checkpoints rare when there is little load. A start after a crash still reads hardly
//     more WAL than max_wal_size.
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
