package server

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Install has the package manager install what the named stores need and neither the environment, this machine nor
// Docker has, and a C compiler, which the race detector needs. It does nothing where that is not possible: then starting
// the store says what is missing.
func Install(ctx context.Context, stores []string, log *slog.Logger) error {
	var packages []string
	if slices.Contains(stores, "redis") && Named(RedisVariable) == "" && !installed("redis-server") {
		packages = append(packages, "redis-server")
	}
	if slices.Contains(stores, "kafka") && Named(KafkaVariable) == "" {
		if !installed("java") {
			packages = append(packages, "default-jre-headless")
		}
		if !installed("mvn") {
			packages = append(packages, "maven")
		}
	}
	if len(packages) > 0 && engineAnswers() {
		packages = nil
	}
	if !installed("gcc") {
		packages = append(packages, "gcc", "libc6-dev")
	}
	if len(packages) == 0 || os.Geteuid() != 0 || !installed("apt-get") {
		return nil
	}
	log.Info("installing what the integration tests need", "packages", strings.Join(packages, " "))
	steps := [][]string{{"update", "-qq"},
		append([]string{"install", "--yes", "-qq", "--no-install-recommends"}, packages...)}
	for _, args := range steps {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w:\n%s", strings.Join(args, " "), err, tail(out))
		}
	}
	return nil
}
