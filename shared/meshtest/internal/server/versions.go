package server

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// These are the oldest major versions that can be used: Kafka 4 needs Java 17, and the Lua scripts of presence need
// commands of Redis 7.
const (
	oldestJava  = 17
	oldestRedis = 7
)

func installed(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// hasJava reports whether the machine has a Java that Kafka runs on.
func hasJava(ctx context.Context) bool {
	output, err := exec.CommandContext(ctx, "java", "-version").CombinedOutput()
	return err == nil && javaMajor(string(output)) >= oldestJava
}

var javaVersion = regexp.MustCompile(`version "(?:1\.)?(\d+)`)

// javaMajor returns the major version in the output of java -version: 17 for 17.0.15, and 8 for 1.8.0_392, which has
// the form of versions before Java 9. It returns 0 if the output contains no version.
func javaMajor(output string) int {
	found := javaVersion.FindStringSubmatch(output)
	if found == nil {
		return 0
	}
	major, _ := strconv.Atoi(found[1])
	return major
}

// redisProgram returns the path of the machine's redis-server. The error is the reason why it cannot be used.
func redisProgram(ctx context.Context) (string, error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return "", errNoRedis
	}
	output, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w: %s", program, err, tail(output))
	}
	version, major := redisMajor(string(output))
	if major < oldestRedis {
		return "", fmt.Errorf("%s is version %s, and the tests need Redis %d.0 or later: install it, or start Docker",
			program, version, oldestRedis)
	}
	return program, nil
}

var redisServerVersion = regexp.MustCompile(`v=((\d+)\S*)`)

func redisMajor(output string) (version string, major int) {
	found := redisServerVersion.FindStringSubmatch(output)
	if found == nil {
		return "unknown", 0
	}
	major, _ = strconv.Atoi(found[2])
	return found[1], major
}
