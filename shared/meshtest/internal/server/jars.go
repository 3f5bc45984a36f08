package server

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
)

// KafkaVersion is the version of Kafka in pom.xml and in the Docker image.
const KafkaVersion = "4.0.0"

//go:embed pom.xml
var pom []byte

// cacheDir returns the folder, outside the checkout, of downloads and builds that later runs reuse.
func cacheDir() (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(user, "edumatrix-interlinked")
	return dir, os.MkdirAll(dir, 0o755)
}

// kafkaJars returns the folder of Kafka's class files, which Maven downloads unless an earlier run has done so.
func kafkaJars(ctx context.Context, log *slog.Logger) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	jars := filepath.Join(cache, "kafka-"+KafkaVersion)
	if _, err := os.Stat(jars); err == nil {
		return jars, nil
	}
	work, err := os.MkdirTemp(cache, "kafka-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(work) }() // a leftover folder is harmless
	file := filepath.Join(work, "pom.xml")
	if err := os.WriteFile(file, pom, 0o644); err != nil {
		return "", err
	}
	log.Info("downloading Apache Kafka, once", "version", KafkaVersion, "into", jars)
	fetched := filepath.Join(work, "jars")
	out, err := exec.CommandContext(ctx, "mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", file,
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+fetched).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("fetch Apache Kafka with Maven: %w:\n%s", err, tail(out))
	}
	// If another process was faster, its folder is used: a folder gets its final name only when it is complete.
	if err := os.Rename(fetched, jars); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return jars, nil
}
