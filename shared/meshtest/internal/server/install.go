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

// Install installs the packages that the named stores need and this machine lacks, unless Docker can run the stores. It
// also installs a C compiler if there is none, because the race detector needs one. Without apt-get or the rights of
// root, Install does nothing; starting a store then reports what is missing.
func Install(ctx context.Context, stores []string, log *slog.Logger) error {
	packages := missing(ctx, stores)
	if len(packages) > 0 && engineAnswers() {
		packages = nil
	}
	if !installed("gcc") {
		packages = append(packages, "gcc", "libc6-dev")
	}
	if len(packages) == 0 || !installed("apt-get") {
		return nil
	}
	asRoot, may := becomeRoot(ctx, os.Geteuid())
	if !may {
		return nil
	}
	log.Info("installing packages for the integration tests", "packages", strings.Join(packages, " "))
	steps := [][]string{{"update", "-qq"},
		append([]string{"install", "--yes", "-qq", "--no-install-recommends"}, packages...)}
	for _, step := range steps {
		args := slices.Concat(asRoot, []string{"env", "DEBIAN_FRONTEND=noninteractive", "apt-get"}, step)
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w:\n%s", strings.Join(step, " "), err, tail(out))
		}
	}
	return nil
}

// missing returns the packages that the stores need and that are not installed. A store needs its packages even if the
// environment names a server for it, because tests that stop a store start a server of their own.
func missing(ctx context.Context, stores []string) (packages []string) {
	if slices.Contains(stores, "redis") {
		if _, err := redisProgram(ctx); err != nil {
			packages = append(packages, "redis-server")
		}
	}
	if slices.Contains(stores, "kafka") {
		if !hasJava(ctx) {
			packages = append(packages, "default-jre-headless")
		}
		if !installed("mvn") {
			packages = append(packages, "maven")
		}
	}
	return packages
}

// becomeRoot returns the words to put before a command that needs root: none for root, otherwise "sudo -n". The second
// result is false if sudo is missing or needs a password.
func becomeRoot(ctx context.Context, uid int) (before []string, may bool) {
	if uid == 0 {
		return nil, true
	}
	sudo := []string{"sudo", "-n"}
	return sudo, exec.CommandContext(ctx, sudo[0], append(sudo[1:], "true")...).Run() == nil
}
