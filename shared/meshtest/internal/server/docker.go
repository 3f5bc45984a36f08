package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// engineAnswers reports whether Docker is installed and its engine responds.
var engineAnswers = sync.OnceValue(func() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}").Run() == nil
})

// contain creates a container from an image and makes the daemon run in the container. The container's port is
// published on loopback, under the same number.
func (d *daemon) contain(ctx context.Context, image string, port int, options, args []string) error {
	d.container = "edumatrix-meshtest-" + strings.ToLower(rand.Text())
	create := []string{"create", "--name", d.container, "--publish", fmt.Sprintf("127.0.0.1:%d:%d", port, port)}
	create = append(append(append(create, options...), image), args...)
	if out, err := exec.CommandContext(ctx, "docker", create...).CombinedOutput(); err != nil {
		return fmt.Errorf("docker create %s: %w: %s", image, err, strings.TrimSpace(string(out)))
	}
	d.command = func() *exec.Cmd { return exec.Command("docker", "start", "--attach", d.container) }
	return nil
}
