package meshrun

import (
	"fmt"
	"os"
	"os/exec"
	"slices"

	"github.com/edumatrix/interlinked/shared/config"
)

// Programs are the names of the mesh's programs.
var Programs = append(config.Services(), config.AllInOne)

// Build builds programs into a new folder, with the race detector if the test itself runs with it. The flags are passed
// to go build. The caller removes the folder with Remove.
func Build(programs []string, flags ...string) (Binaries, error) {
	return BuildIn("", programs, flags...)
}

// BuildIn builds programs like Build, from the sources in a checkout of the project. If checkout is "", BuildIn uses
// the sources of the test itself.
func BuildIn(checkout string, programs []string, flags ...string) (Binaries, error) {
	dir, err := os.MkdirTemp("", "edumatrix-programs-")
	if err != nil {
		return "", err
	}
	args := slices.Concat([]string{"build", "-o", dir + "/"}, flags)
	if raceDetector {
		args = append(args, "-race")
	}
	for _, program := range programs {
		args = append(args, "github.com/edumatrix/interlinked/services/"+program+"/cmd/"+program)
	}
	build := exec.Command("go", args...)
	build.Dir = checkout
	if out, err := build.CombinedOutput(); err != nil {
		_ = os.RemoveAll(dir)
		return "", fmt.Errorf("build the mesh's programs: %w\n%s", err, out)
	}
	return Binaries(dir), nil
}

// Remove deletes the folder.
func (b Binaries) Remove() { _ = os.RemoveAll(string(b)) }
