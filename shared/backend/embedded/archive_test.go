package embedded

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// goodArchive and evilArchive are small archives in the published format. goodArchive contains the programs
// bin/postgres and bin/initdb, which print version 17.11, and the link bin/postmaster. evilArchive contains the file
// ../outside, which must not be unpacked.
const (
	goodArchive = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4Cf/AMldADEaShsFkZA3OlG9V3Gz1uIDp1boM29goXzVwNXGBtEoRyFCzhZOGvpEKk" +
		"+tmzi/2GXnwOfUVWauB/DIPJWLuV8AKCucfmJHUEWBDFEqa5c5jdxHg+dts07mRuHoFR0cCZJ6nfIEwf3qdAy+Toy0h7Xcg1JmL8xbI6uz" +
		"p4JesX9CbEIlufNYv4ADPQrzgUGuw8kJ7TO/RMh9iVgTEgghziqKrJ3f2SZke7YjU4AGlFcVAtWF2BsDc2BCJVSIp8fDjwaPydu9Ze9pAA" +
		"AAAAB7LS1advQBbwAB5QGAUAAA1+9ZObHEZ/sCAAAAAARZWg=="
	evilArchive = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4Cf/AG9dABdguN51OX9VlsffEiGyZrFWtACFaAbfCKpcyIDGMGrv3fim7FwbHXynf4" +
		"S92qLGDRwysbW6S0uE0ya3nkITcJjpB2OdvceadsP3lmQBXb83GMLvv1GFNGuiDV8fDvi86JgYmOvYlQi1tiQBfafjAAAA+ETb9Rd4HsEA" +
		"AYsBgFAAAP2BpwuxxGf7AgAAAAAEWVo="
)

// publish serves an archive over HTTP in the same way as the source from which the library embedded-postgres downloads
// its archives. Every platform gets the same archive. The result sum is the archive's checksum, and the result fetched
// counts the downloads.
func publish(t *testing.T, txz string) (source, sum string, fetched *atomic.Int32) {
	t.Helper()
	content, err := base64.StdEncoding.DecodeString(txz)
	require.NoError(t, err)
	jar := filepath.Join(t.TempDir(), "jar")
	f, err := os.Create(jar)
	require.NoError(t, err)
	z := zip.NewWriter(f)
	w, err := z.Create("postgres.txz")
	require.NoError(t, err)
	_, err = w.Write(content)
	require.NoError(t, errors.Join(err, z.Close(), f.Close()))
	whole, err := os.ReadFile(jar)
	require.NoError(t, err)

	fetched = &atomic.Int32{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".sha256") {
			sum := sha256.Sum256(whole)
			_, _ = w.Write([]byte(hex.EncodeToString(sum[:])))
			return
		}
		fetched.Add(1)
		_, _ = w.Write(whole)
	}))
	t.Cleanup(s.Close)
	own := sha256.Sum256(content)
	return s.URL, hex.EncodeToString(own[:]), fetched
}

// testArchive returns an archive that is downloaded from the URL in the parameter source. The parameter sum is the
// archive's pinned checksum on every platform.
func testArchive(t *testing.T, source, sum string) archive {
	sums := map[string]string{}
	for platform := range archiveSums {
		sums[platform] = sum
	}
	return archive{dir: t.TempDir(), sums: sums, log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		download: func(ctx context.Context, into string) error { return downloadArchive(ctx, into, source) }}
}

func TestArchive_IsDownloadedOnceAndReadableByAll(t *testing.T) {
	t.Parallel()
	source, sum, fetched := publish(t, goodArchive)
	a := testArchive(t, source, sum)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			programs, err := a.ensure(t.Context())
			if err != nil || programs != filepath.Join(a.dir, archiveVersion) {
				t.Error(programs, err)
			}
		})
	}
	all.Wait()
	require.EqualValues(t, 1, fetched.Load())

	b, err := inspectBinaries(t.Context(), filepath.Join(a.dir, archiveVersion))
	require.NoError(t, err)
	require.Equal(t, binaries{filepath.Join(a.dir, archiveVersion, "bin"), "17.11", 17}, b)
	info, err := os.Stat(b.program("postmaster"))
	require.NoError(t, err)
	require.Equal(t, "-rwxr-xr-x", info.Mode().String(), "in the archive only the owner may read it")
	left, err := filepath.Glob(filepath.Join(a.dir, "fetch-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestArchive_IsRefusedWhenItsChecksumIsNotThePinnedOne(t *testing.T) {
	t.Parallel()
	source, _, _ := publish(t, goodArchive)
	a := testArchive(t, source, strings.Repeat("0", 64))
	_, err := a.ensure(t.Context())
	require.ErrorContains(t, err, "not the pinned 0000")
	require.ErrorContains(t, err, "it was not used")
	require.NoDirExists(t, filepath.Join(a.dir, archiveVersion))
}

func TestArchive_IsRefusedWhereNoChecksumIsPinned(t *testing.T) {
	t.Parallel()
	source, _, fetched := publish(t, goodArchive)
	a := testArchive(t, source, "")
	a.sums = map[string]string{"plan9-mips": ""}
	_, err := a.ensure(t.Context())
	require.ErrorContains(t, err, "there is no pinned checksum for")
	require.Zero(t, fetched.Load())
}

func TestArchive_IsNotUnpackedByTheDownload(t *testing.T) {
	t.Parallel()
	source, _, _ := publish(t, goodArchive)
	dir := t.TempDir()
	require.NoError(t, downloadArchive(t.Context(), dir, source))
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if strings.Contains(filepath.Base(path), "initdb") {
			t.Error("unpacked:", path)
		}
		return err
	}))
}

func TestArchive_CannotWriteOutsideItsFolder(t *testing.T) {
	t.Parallel()
	source, sum, _ := publish(t, evilArchive)
	a := testArchive(t, source, sum)
	_, err := a.ensure(t.Context())
	require.ErrorContains(t, err, "path escapes")
	require.NoDirExists(t, filepath.Join(a.dir, archiveVersion))
}

func TestBinaries_ReportThatNoneCanBeUsed(t *testing.T) {
	t.Parallel()
	closed := httptest.NewServer(nil)
	closed.Close()
	a := testArchive(t, closed.URL, "")
	old := []binaries{{dir: t.TempDir(), version: "15.4", major: 15}}
	_, err := pickBinaries(slog.New(slog.DiscardHandler), account{}, 0, old, func() (binaries, error) {
		_, err := a.ensure(t.Context())
		return binaries{}, err
	})
	require.ErrorContains(t, err, "PostgreSQL 17 or later is not installed, and version 17.11 could not be downloaded")
	require.ErrorContains(t, err, "unable to connect")
	require.ErrorContains(t, err, BinariesVariable)
}

func TestBinaries_MatchTheVersionOfExistingData(t *testing.T) {
	t.Parallel()
	none := func() (binaries, error) { return binaries{}, errors.New("not asked for") }
	newer, newest := binaries{"a", "17.4", 17}, binaries{"b", "18.3", 18}
	log := slog.New(slog.DiscardHandler)

	got, err := pickBinaries(log, account{}, 0, []binaries{newest, newer}, none)
	require.NoError(t, err)
	require.Equal(t, newest, got)
	got, err = pickBinaries(log, account{}, 17, []binaries{newest, newer}, none)
	require.NoError(t, err)
	require.Equal(t, newer, got)
	_, err = pickBinaries(log, account{}, 18, []binaries{newer}, none)
	require.ErrorContains(t, err, "the data was made by PostgreSQL 18, which is not installed")
}
