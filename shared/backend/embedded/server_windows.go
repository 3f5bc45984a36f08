package embedded

import (
	"context"
	"fmt"
	"os/exec"

	"golang.org/x/sys/windows"
)

// account is the account of PostgreSQL's programs, which is always the account of this process. The server refuses to
// run with an administrator's rights.
type account struct{}

func (account) String() string                   { return "this user" }
func chooseAccount(string) (account, error)      { return account{}, nil }
func (account) inaccessibleFolder(string) string { return "" }
func (account) own(string) error                 { return nil }
func (account) apply(*exec.Cmd)                  {}

func (account) download(ctx context.Context, into, source string) error {
	return downloadArchive(ctx, into, source)
}

// signal makes a server shut down. On Windows only PostgreSQL's own tool, pg_ctl, can do that.
func (c *cluster) signal(_ int, how stopping) error {
	mode := "fast"
	if how == stopNow {
		mode = "immediate"
	}
	out, err := exec.Command(c.binaries.program("pg_ctl"), "stop", "-D", c.dir, "-m", mode, "-W").CombinedOutput()
	if err != nil {
		return fmt.Errorf("pg_ctl stop: %w: %s", err, lastLines(out))
	}
	return nil
}

// isServerOf reports whether a process exists. The process id comes from the data folder, so the process is taken for
// the server of that data.
func isServerOf(pid int, _ string) bool {
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(pid))
	if err != nil {
		return false
	}
	defer func() { _ = windows.CloseHandle(h) }() // the handle was only used to read the status
	var status uint32
	const stillActive = 259
	return windows.GetExitCodeProcess(h, &status) == nil && status == stillActive
}
