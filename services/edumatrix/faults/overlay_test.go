//go:build integration

package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// change replaces a text that occurs once in one of the mesh's source files. The function overlay makes the change in a
// copy of the file, and the build uses the copy instead of the original. So the original contains no code for these
// tests.
type change struct{ file, old, new string }

// variableClock is the environment variable with the offset of a process's clock. Only programs that are built with the
// changes below read it.
const variableClock = "FAULTS_CLOCK"

// clocks are the changes that add the offset in variableClock to the clock of a process.
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

// overlay makes the changes in copies of the files, which it writes to the folder dir. It returns the build flag with
// which the compiler uses the copies.
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
			return "", fmt.Errorf("%s contains the following text %d times, not once:\n%s", c.file, n, c.old)
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
