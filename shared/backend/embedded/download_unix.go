//go:build !windows

package embedded

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

// A child process that downloads gets two environment variables: the folder for the archive, and the URL from which to
// download ("": the library's default URL).
const (
	downloadInto   = "EDUMATRIX_DOWNLOAD_INTO"
	downloadSource = "EDUMATRIX_DOWNLOAD_SOURCE"
)

// To download PostgreSQL, a program that runs as root starts itself once more, under PostgreSQL's account. The child
// must download before the program does anything else.
func init() {
	into := os.Getenv(downloadInto)
	if into == "" {
		return
	}
	if err := downloadArchive(context.Background(), into, os.Getenv(downloadSource)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// passedOn contains the environment variables that the child inherits from this process, in upper or lower case: PATH,
// and those that configure network access. The child inherits no other variables, because they may contain secrets, and
// other processes of the child's account can read the child's environment.
var passedOn = []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "PATH"}

// download runs downloadArchive under the account.
func (a account) download(ctx context.Context, into, source string) error {
	if !a.other {
		return downloadArchive(ctx, into, source)
	}
	self, err := os.Executable()
	if runtime.GOOS == "linux" {
		self, err = "/proc/self/exe", nil // the account may be unable to enter the folder of the program
	}
	if err != nil {
		return err
	}
	if err := a.own(into); err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Dir = into
	cmd.Env = []string{downloadInto + "=" + into, downloadSource + "=" + source, "HOME=" + into, "TMPDIR=" + into}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); slices.Contains(passedOn, strings.ToUpper(name)) {
			cmd.Env = append(cmd.Env, v)
		}
	}
	a.apply(cmd)
	if output, err := run(ctx, cmd); err != nil {
		if text := bytes.TrimSpace(output); len(text) > 0 {
			return fmt.Errorf("%s", text)
		}
		return fmt.Errorf("download as %s: %w", a, err)
	}
	// Give the folder back to this process's account, so that PostgreSQL's account can no longer change the archive,
	// which is checked next.
	return os.Chown(into, os.Geteuid(), os.Getegid())
}
