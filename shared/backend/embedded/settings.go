package embedded

import "strconv"

const (
	minCache = 128 << 20 // PostgreSQL's own default
	maxCache = 2 << 30   // the system caches files as well, so a larger cache gains little
	minWAL   = 1 << 30   // PostgreSQL's own default
	maxWAL   = 4 << 30   // reading it back after a crash takes about a minute
)

// sized returns the settings that go by how much memory the server is given for its cache; 0: PostgreSQL's default.
//
//   - shared_buffers is that cache. The log's indexes take new entries at random places, and each page that is not found
//     in the cache is read, and written again, for one entry.
//   - max_wal_size is how much is logged between checkpoints under load. After each checkpoint the first change of a page
//     logs the whole page, so there are to be few of them: four times the cache, which a checkpoint writes at most once.
//   - checkpoint_timeout does the same for a server with little to do. The start after a crash reads no more than max_wal_size.
//
// wal_compression stays off: it trades processor time, which is short where all services share a machine, for disk.
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
