package process

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func TestMemoryLimit_IsTheMemoryThatTheProcessMayUse(t *testing.T) {
	t.Parallel()
	const machine = "MemTotal:       8388608 kB\nMemFree:         100 kB\n" // 8 GiB
	for _, test := range []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"nothing is known", nil, 0},
		{"a machine", map[string]string{"proc/meminfo": machine}, 2 << 30},
		{"a group without a limit", map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/\n",
			"sys/fs/cgroup/memory.max": "max\n"}, 2 << 30},
		{"a container", map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/\n",
			"sys/fs/cgroup/memory.max": "1000000000\n"}, 800_000_000},
		{"a container with more than the share", map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/\n",
			"sys/fs/cgroup/memory.max": "6442450944\n"}, 5153960755},
		{"a unit of systemd", map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/system.slice/mesh.service\n",
			"sys/fs/cgroup/system.slice/mesh.service/memory.max": "max\n",
			"sys/fs/cgroup/system.slice/memory.max":              "1000000000\n"}, 800_000_000},
		{"control groups of version 1", map[string]string{"proc/meminfo": machine,
			"proc/self/cgroup": "9:cpu,cpuacct:/x\n5:memory:/docker/1\n0::/x\n",
			"sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "1000000000\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":          "9223372036854771712\n"}, 800_000_000},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := fstest.MapFS{}
			for name, text := range test.files {
				root[name] = &fstest.MapFile{Data: []byte(text)}
			}
			require.Equal(t, test.want, memoryLimit(root, OneService))
		})
	}
}
