package edumatrix

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/shared/filelock"
)

// A subcommand holds the lock of the data directory for a moment, to find out whether a mesh is running. openDataDir
// must wait until the subcommand has released the lock. A running mesh holds the lock until it ends; openDataDir must
// then fail.
func TestDataDir_WaitsForASubcommandThatHoldsTheLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	looking, err := filelock.Try(filepath.Join(dir, lockFile))
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(lookTime/5, looking.Release)
	data, err := openDataDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer data.close()
	if _, err := openDataDir(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "in use by another edumatrix") {
		t.Errorf("opening the directory a second time: %v", err)
	}
}
