package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
)

// oldestMajor is the first version with transaction_timeout, which the event log needs.
const oldestMajor = 17

// binaries is a folder of PostgreSQL programs.
type binaries struct {
	dir     string
	version string
	major   int
}

func (b binaries) program(name string) string {
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	return filepath.Join(b.dir, name)
}

// chooseBinaries finds programs for data of a major version (0: no data exists yet). Configured programs that cannot
// be used for the data are an error. If no programs are configured, suitable installed ones are preferred to downloaded
// ones.
func chooseBinaries(ctx context.Context, o PostgresOptions, who account, major int) (binaries, error) {
	if o.Binaries != "" {
		b, err := inspectBinaries(ctx, o.Binaries)
		if err != nil {
			return b, fmt.Errorf("%s=%s: %w", BinariesVariable, o.Binaries, err)
		}
		if b.major < oldestMajor {
			return b, fmt.Errorf("%s=%s: it is PostgreSQL %s, %d or later is needed",
				BinariesVariable, o.Binaries, b.version, oldestMajor)
		}
		if major != 0 && b.major != major {
			return b, fmt.Errorf("%s=%s: it is PostgreSQL %s, but the data was made by PostgreSQL %d",
				BinariesVariable, o.Binaries, b.version, major)
		}
		if hidden := who.inaccessibleFolder(b.dir); hidden != "" {
			return b, fmt.Errorf("%s=%s: %s cannot enter %s", BinariesVariable, o.Binaries, who, hidden)
		}
		return b, nil
	}
	return pickBinaries(o.Log, who, major, installedBinaries(ctx),
		func() (binaries, error) { return downloadedBinaries(ctx, o, who) })
}

func pickBinaries(
	log *slog.Logger, who account, major int, installed []binaries, download func() (binaries, error),
) (binaries, error) {
	for _, b := range installed {
		if b.major >= oldestMajor && (major == 0 || b.major == major) && who.inaccessibleFolder(b.dir) == "" {
			log.Debug("using the installed PostgreSQL", "version", b.version, "dir", b.dir)
			return b, nil
		}
	}
	if major != 0 && major != archiveMajor {
		return binaries{}, fmt.Errorf("the data was made by PostgreSQL %d, which is not installed: "+
			"install it, or set %s to the folder of its programs", major, BinariesVariable)
	}
	b, err := download()
	if err != nil {
		return b, fmt.Errorf("PostgreSQL %d or later is not installed, and version %s could not be downloaded: %w; "+
			"install it, or set %s to the folder of its programs", oldestMajor, archiveVersion, err, BinariesVariable)
	}
	return b, nil
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) ((\d+)\S*)`)

// inspectBinaries reads the version of the programs in a folder, or in its subfolder bin.
func inspectBinaries(ctx context.Context, dir string) (binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return binaries{}, err
	}
	b := binaries{dir: dir}
	if _, err := os.Stat(b.program("postgres")); err != nil {
		b.dir = filepath.Join(dir, "bin")
	}
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := os.Stat(b.program(name)); err != nil {
			return b, fmt.Errorf("there is no program %s in it", name)
		}
	}
	out, err := exec.CommandContext(ctx, b.program("postgres"), "--version").Output()
	if err != nil {
		return b, fmt.Errorf("%s --version: %w", b.program("postgres"), err)
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return b, errors.New("postgres --version does not print a version of PostgreSQL")
	}
	b.version = string(m[1])
	b.major, err = strconv.Atoi(string(m[2]))
	return b, err
}

// installedBinaries returns the programs that it finds in PATH and in the usual folders, the newest major version
// first.
func installedBinaries(ctx context.Context) []binaries {
	var dirs []string
	if found, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(found); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",   // Debian
		"/usr/pgsql-*/bin",            // Red Hat
		"/usr/libexec/postgresql*",    // Alpine
		"/usr/local/pgsql/bin",        // from source
		"/opt/homebrew/opt/post*/bin", // Homebrew
		"/usr/local/opt/post*/bin",
		"/home/linuxbrew/.linuxbrew/opt/post*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
		`C:\Program Files\PostgreSQL\*\bin`,
	} {
		found, _ := filepath.Glob(pattern) // the only error is a malformed pattern
		dirs = append(dirs, found...)
	}
	var all []binaries
	for _, dir := range dirs {
		known := func(b binaries) bool { return b.dir == dir }
		if b, err := inspectBinaries(ctx, dir); err == nil && !slices.ContainsFunc(all, known) {
			all = append(all, b)
		}
	}
	slices.SortStableFunc(all, func(a, b binaries) int { return b.major - a.major })
	return all
}
