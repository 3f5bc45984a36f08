//go:build integration

package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// change replaces a text that stands in one of the mesh's files once. It is made in a copy, which a build takes
// instead: nothing is in the mesh for the sake of these tests.
type change struct{ file, old, new string }

// variableClock is how far the clock of a process is off, in builds that have the changes of clocks.
const variableClock = "FAULTS_CLOCK"

// clocks lets a process's injected clock be off.
var clocks = []change{
	{"shared/eventlog/log.go", `		o.Now = time.Now
`, `		o.Now = func() time.Time {
			off, _ := time.ParseDuration(os.Getenv("` + variableClock + `"))
			return time.Now().Add(off)
		}
`},
	{"shared/eventlog/log.go", `import (
`, `import (
	"os"
`},
	{"shared/owner/service.go", `now: time.Now})`, `now: func() time.Time {
			off, _ := time.ParseDuration(os.Getenv("` + variableClock + `"))
			return time.Now().Add(off)
		}})`},
	{"shared/owner/service.go", `import (
`, `import (
	"os"
`},
}

// overlay makes changes in copies under a folder, and gives the flag that has a build take them.
func overlay(dir string, changes []change) (flag string, err error) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		return "", err
	}
	copies := map[string]string{}
	for i, c := range changes {
		original := filepath.Join(root, c.file)
		from := original
		if made, ok := copies[original]; ok {
			from = made
		}
		source, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(source), c.old); n != 1 {
			return "", fmt.Errorf("%s holds this %d times, not once:\n%s", c.file, n, c.old)
		}
		copies[original] = filepath.Join(dir, fmt.Sprintf("%d-%s", i, filepath.Base(c.file)))
		changed := strings.Replace(string(source), c.old, c.new, 1)
		if err := os.WriteFile(copies[original], []byte(changed), 0o600); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": copies})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return "-overlay=" + file, os.WriteFile(file, list, 0o600)
}
