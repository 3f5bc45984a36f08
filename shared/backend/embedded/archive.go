package embedded

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
	"github.com/xi2/xz"
)

// archiveVersion is the version of PostgreSQL that is downloaded if no suitable version is installed.
const (
	archiveVersion = "17.11"
	archiveMajor   = 17
)

// archiveSums are the SHA-256 sums of the .txz archives that the library embedded-postgres stores after a download. The
// keys are the library's names for platforms. The sums were taken from the published artifacts when the version was
// chosen. They are needed because the library compares an archive only with a sum from the server that the archive came
// from. (The two archives for macOS are identical and contain programs for both kinds of processors.)
var archiveSums = map[string]string{
	"linux-amd64":        "f044ba1009e9c7ed62a5a9a6f923ca6327fe4e80d8f6bf4f8887dbc59ac14bed",
	"linux-amd64-alpine": "d4c71a0ed4756905b071aefc0bd0d0458a53a25edc643d473917cff1f49d1aa3",
	"linux-arm64v8":      "3f389cec72930e0f0d6e917709593bbabcb417023c12d1f1eb7acc9ae7ab436c",
	"darwin-amd64":       "9debf1c40ca2cd7e71d101be421f8b170722222633960267fbfef7ce77b8b530",
	"darwin-arm64v8":     "9debf1c40ca2cd7e71d101be421f8b170722222633960267fbfef7ce77b8b530",
	"windows-amd64":      "13abde527268c5f3405732f59d5ba0cd26d49ade5cadad6c1e54bfe79648a6d3",
}

// archive downloads, checks and unpacks PostgreSQL's programs into a permanent folder.
type archive struct {
	dir      string                                             // holds one folder per version
	sums     map[string]string                                  // see archiveSums
	download func(ctx context.Context, into string) (err error) // puts the library's archive into a folder
	log      *slog.Logger
}

// downloadedBinaries returns the programs of archiveVersion. It downloads them unless an earlier start has done so.
func downloadedBinaries(ctx context.Context, o PostgresOptions, who account) (binaries, error) {
	dir, err := cacheDir(o.CacheDir, who)
	if err != nil {
		return binaries{}, err
	}
	a := archive{dir: dir, sums: archiveSums, log: o.Log,
		download: func(ctx context.Context, into string) error { return who.download(ctx, into, "") }}
	programs, err := a.ensure(ctx)
	if err != nil {
		return binaries{}, err
	}
	return inspectBinaries(ctx, programs)
}

// cacheDir creates and returns the folder of downloaded programs: the chosen one or, by default, a folder in the user's
// cache. The account that runs the programs must be able to enter the folder. If that account cannot enter the default
// folder, as is usual in root's home, the default is a folder in the machine's cache.
func cacheDir(chosen string, who account) (string, error) {
	if chosen == "" {
		if user, err := os.UserCacheDir(); err == nil {
			chosen = filepath.Join(user, "edumatrix-interlinked", "postgres")
		}
		if (chosen == "" || who.inaccessibleFolder(chosen) != "") && runtime.GOOS != "windows" {
			chosen = "/var/cache/edumatrix-interlinked/postgres"
		}
	}
	chosen, err := filepath.Abs(chosen)
	if err != nil {
		return "", err
	}
	if hidden := who.inaccessibleFolder(chosen); hidden != "" {
		return "", fmt.Errorf("%s cannot enter %s: choose another cache folder than %s", who, hidden, chosen)
	}
	return chosen, os.MkdirAll(chosen, 0o755)
}

// ensure returns the folder of unpacked programs, which it downloads if they are missing. The folder gets its final
// name only after the archive was checked and unpacked.
func (a archive) ensure(ctx context.Context) (string, error) {
	programs := filepath.Join(a.dir, archiveVersion)
	if _, err := os.Stat(programs); err == nil {
		return programs, nil
	}
	if !a.pinned() {
		return "", fmt.Errorf("there is no pinned checksum for %s on %s", runtime.GOOS, runtime.GOARCH)
	}
	// One process downloads; the other processes find the result.
	lock, err := awaitLock(ctx, filepath.Join(a.dir, "lock"))
	if err != nil {
		return "", err
	}
	defer lock.Release()
	if _, err := os.Stat(programs); err == nil {
		return programs, nil
	}
	work, err := os.MkdirTemp(a.dir, "fetch-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(work) }() // a leftover folder is harmless

	a.log.Info("downloading PostgreSQL, once", "version", archiveVersion, "into", a.dir)
	if err := a.download(ctx, work); err != nil {
		return "", err
	}
	file, err := a.check(work)
	if err != nil {
		return "", err
	}
	a.log.Info("unpacking PostgreSQL", "version", archiveVersion)
	unpacked := filepath.Join(work, "unpacked")
	if err := unpack(ctx, file, unpacked); err != nil {
		return "", fmt.Errorf("unpack %s: %w", filepath.Base(file), err)
	}
	return programs, os.Rename(unpacked, programs)
}

// pinned reports whether there is a sum for this platform, under any of the library's names for it.
func (a archive) pinned() bool {
	for platform := range a.sums {
		if strings.HasPrefix(platform, runtime.GOOS+"-"+runtime.GOARCH) {
			return true
		}
	}
	return false
}

// check finds the downloaded archive and compares it with its pinned sum.
func (a archive) check(dir string) (string, error) {
	const prefix, suffix = "embedded-postgres-binaries-", "-" + archiveVersion + ".0.txz"
	found, err := filepath.Glob(filepath.Join(dir, prefix+"*"+suffix))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("one archive of version %s was expected, found %d", archiveVersion, len(found))
	}
	platform := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(found[0]), prefix), suffix)
	want, ok := a.sums[platform]
	if !ok {
		return "", fmt.Errorf("there is no pinned checksum for %s", platform)
	}
	f, err := os.Open(found[0])
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // the file was only read
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		return "", fmt.Errorf("the archive for %s has the checksum %s, not the pinned %s: it was not used",
			platform, got, want)
	}
	return found[0], nil
}

// downloadArchive makes the library download its archive from the URL in the parameter source. If that is "", the
// library uses its default URL. The library would then unpack and run the programs, although the archive is not checked
// yet. To prevent that, the library is configured to unpack to a folder that cannot be created, so it fails after the
// download.
func downloadArchive(ctx context.Context, into, source string) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	gate := filepath.Join(into, "gate")
	if runtime.GOOS == "windows" {
		err = os.WriteFile(gate, nil, 0o600)
	} else {
		err = os.Symlink(filepath.Join(into, "nowhere", "nothing"), gate)
	}
	if err != nil {
		return err
	}
	config := embeddedpostgres.DefaultConfig().Version(archiveVersion + ".0").Port(uint32(port)).Logger(io.Discard).
		CachePath(into).RuntimePath(filepath.Join(into, "runtime")).BinariesPath(filepath.Join(gate, "programs"))
	if source != "" {
		config = config.BinaryRepositoryURL(source)
	}
	ended := make(chan error, 1)
	// The library accepts no context: if ctx ends first, the request continues in the background.
	go func() { ended <- embeddedpostgres.NewDatabase(config).Start() }()
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("the download took longer than 10 minutes"))
	defer cancel()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case err = <-ended:
	}
	if found, _ := filepath.Glob(filepath.Join(into, "*.txz")); len(found) > 0 {
		return nil
	}
	return err
}

// unpack unpacks a .txz into the folder dir. All users may read the files and run the programs among them. An entry of
// the archive cannot be written outside of dir.
func unpack(ctx context.Context, file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // the file was only read
	uncompressed, err := xz.NewReader(f, 0)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // every file in it was closed
	for entries := tar.NewReader(uncompressed); ; {
		entry, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return openToAll(dir)
		}
		if err != nil {
			return err
		}
		if err := errors.Join(ctx.Err(), unpackEntry(root, entry, entries)); err != nil {
			return err
		}
	}
}

func unpackEntry(root *os.Root, entry *tar.Header, content io.Reader) error {
	name := filepath.Clean(filepath.FromSlash(entry.Name))
	if entry.Typeflag == tar.TypeDir {
		return root.MkdirAll(name, 0o755)
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	switch entry.Typeflag {
	case tar.TypeSymlink:
		return root.Symlink(entry.Linkname, name)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, entry.FileInfo().Mode().Perm())
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Close())
	default:
		return fmt.Errorf("%s: an entry of kind %q is not expected", entry.Name, entry.Typeflag)
	}
}

// openToAll makes all files readable, and programs executable, for all users, despite a strict umask.
func openToAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if d.IsDir() || mode&0o100 != 0 {
			mode |= 0o111
		}
		return os.Chmod(path, mode)
	})
}
