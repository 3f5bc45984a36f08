package process

import (
	"io/fs"
	"log/slog"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// MemoryShare is the share of memory that a process may use. Above it, the process collects garbage more often.
type MemoryShare struct {
	Machine float64 // share of the machine's memory, which other processes use too; not used if Group applies
	Group   float64 // share of the control group's memory limit, if there is one
}

var (
	// OneService is the share of a process that runs one service.
	OneService = MemoryShare{Machine: 0.25, Group: 0.8}
	// WholeMesh is the share of a process that runs all services and starts a PostgreSQL server.
	WholeMesh = MemoryShare{Machine: 0.5, Group: 0.6}
	// DatabaseCache is the share for the page cache of the PostgreSQL server that a process with all services starts. The
	// share is small, because the server's connections need memory too and the system also caches files.
	DatabaseCache = MemoryShare{Machine: 0.125, Group: 0.15}
)

// Memory returns the size of a share on this machine and in this control group, in bytes, or 0 if it is unknown.
func Memory(share MemoryShare) int64 { return memoryLimit(os.DirFS("/"), share) }

// garbagePercent is the value of GOGC, which applies while the process is below its memory limit. The heap is small and
// mostly short-lived, so Go's default of 100 would collect many times a second under load.
const garbagePercent = 400

// TuneMemory makes the process collect garbage less often while it stays below its share of memory. GOMEMLIMIT and GOGC
// take precedence if they are set. If GOMEMLIMIT is not set and the size of the share is unknown, as on systems other
// than Linux, TuneMemory changes nothing.
func TuneMemory(share MemoryShare, log *slog.Logger) {
	if os.Getenv("GOMEMLIMIT") == "" {
		limit := Memory(share)
		if limit == 0 {
			return
		}
		debug.SetMemoryLimit(limit)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
	log.Debug("garbage collection", "limit_mib", debug.SetMemoryLimit(-1)>>20)
}

// memoryLimit returns the memory that the process may use, in bytes, or 0 if it is unknown.
func memoryLimit(root fs.FS, share MemoryShare) int64 {
	total := machineMemory(root)
	group := int64(0)
	for place := ownGroup(root); ; place = path.Dir(place) { // a group's limit holds for all groups below it
		for _, file := range []string{
			path.Join("sys/fs/cgroup", place, "memory.max"),                   // version 2
			path.Join("sys/fs/cgroup/memory", place, "memory.limit_in_bytes"), // version 1
		} {
			text, err := fs.ReadFile(root, file)
			if err != nil {
				continue
			}
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err != nil || n <= 0 || (total > 0 && n >= total) {
				continue // "max" and values of at least the machine's memory are not limits
			}
			if group == 0 || n < group {
				group = n
			}
		}
		if place == "/" || place == "." {
			break
		}
	}
	if group > 0 {
		return int64(share.Group * float64(group))
	}
	return int64(share.Machine * float64(total))
}

// ownGroup returns the control group of the process; in a container it is usually "/".
func ownGroup(root fs.FS) string {
	text, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return "/"
	}
	group := "/"
	for line := range strings.Lines(string(text)) {
		// The form is hierarchy:controllers:path; version 2 names no controllers.
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && (parts[1] == "" || parts[1] == "memory") {
			if group = path.Clean("/" + parts[2]); parts[1] == "memory" {
				break
			}
		}
	}
	return group
}

// machineMemory returns the machine's memory in bytes, or 0 if it is unknown.
func machineMemory(root fs.FS) int64 {
	text, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "MemTotal:" && fields[2] == "kB" {
			kilobytes, _ := strconv.ParseInt(fields[1], 10, 64) // 0: unknown
			return kilobytes << 10
		}
	}
	return 0
}
