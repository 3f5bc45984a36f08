//go:build integration

package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// stores contains the process ids of the stores that a test started, by name.
type stores map[string]int

// clients is the name for the CPU time of this process, which runs the clients.
const clients = "clients"

// cpu returns several CPU times under their names: the times that the clients, each process of the mesh, the
// descendants of these processes, and each store have used so far.
func (m *mesh) cpu(s stores) map[string]time.Duration {
	all := map[string]time.Duration{clients: times(os.Getpid()).own}
	gateways := 0
	for _, p := range m.processes {
		name := p.Name
		if name == "gateway" {
			gateways++
			name += "-" + strconv.Itoa(gateways)
		}
		all[name] = times(p.PID()).own
		for child, d := range children(p.PID()) {
			all[child] += d
		}
	}
	for name, pid := range s {
		t := times(pid)
		all[name] = t.own + t.waited // including child processes of the store that have ended
		for _, d := range children(pid) {
			all[name] += d
		}
	}
	return all
}

func spent(before, after map[string]time.Duration) map[string]time.Duration {
	all := maps.Clone(after)
	for name, d := range before {
		all[name] -= d
	}
	return all
}

// total returns the CPU time of all processes except the clients.
func total(spent map[string]time.Duration) (sum time.Duration) {
	for name, d := range spent {
		if name != clients {
			sum += d
		}
	}
	return sum
}

// each returns the CPU time per message, in microseconds.
func each(d time.Duration, messages int) float64 {
	return float64(d.Microseconds()) / float64(max(1, messages))
}

// perMessage describes the CPU time per message of each process, the most expensive process first.
func perMessage(spent map[string]time.Duration, messages int) string {
	names := slices.SortedFunc(maps.Keys(spent), func(a, b string) int { return cmp.Compare(spent[b], spent[a]) })
	var all []string
	for _, name := range names {
		if d := spent[name]; d > 0 {
			all = append(all, fmt.Sprintf("%s %.0f", name, each(d, messages)))
		}
	}
	return fmt.Sprintf("%.0f µs CPU/msg without clients (%s)", each(total(spent), messages), strings.Join(all, ", "))
}

// used is the CPU time of a process, and of its children that have ended.
type used struct{ own, waited time.Duration }

// times returns the user and system time of a process. It reads them from /proc, which contains times in ticks of a
// hundredth of a second. The result is zero if the process does not exist.
func times(pid int) used {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return used{}
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	ticks := func(i int) time.Duration {
		n, _ := strconv.Atoi(fields[i]) // these fields are always numbers, see proc(5)
		return time.Duration(n) * 10 * time.Millisecond
	}
	return used{ticks(11) + ticks(12), ticks(13) + ticks(14)}
}

// children returns the CPU time of a process's descendants, such as the embedded database server, by name.
func children(pid int) map[string]time.Duration {
	all := map[string]time.Duration{}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		for _, child := range strings.Fields(string(raw)) {
			n, _ := strconv.Atoi(child)
			raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", n))
			name := strings.TrimSpace(string(raw))
			t := times(n)
			all[name] += t.own + t.waited
			for grandchild, d := range children(n) {
				all[grandchild] += d
			}
		}
	}
	return all
}
