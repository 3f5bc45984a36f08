package edumatrix

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/shared/filelock"
)

// A subcommand that checks for a running mesh holds the lock for a moment; a running mesh holds it until it ends.
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
		t.Errorf("opened twice: %v", err)
	}
}
