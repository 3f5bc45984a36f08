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

// KafkaVersion is what pom.xml and the image say.
const KafkaVersion = "4.0.0"

//go:embed pom.xml
var pom []byte

// cacheDir keeps what was fetched or built, outside of the checkout, for every later run.
func cacheDir() (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(user, "edumatrix-interlinked")
	return dir, os.MkdirAll(dir, 0o755)
}

// kafkaJars is the folder of Kafka's class files, which Maven fetches unless an earlier run has.
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
	defer func() { _ = os.RemoveAll(work) }() // what is left of it is in nobody's way
	file := filepath.Join(work, "pom.xml")
	if err := os.WriteFile(file, pom, 0o644); err != nil {
		return "", err
	}
	log.Info("fetching Apache Kafka, once", "version", KafkaVersion, "into", jars)
	fetched := filepath.Join(work, "jars")
	out, err := exec.CommandContext(ctx, "mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", file,
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+fetched).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("fetch Apache Kafka with Maven: %w:\n%s", err, tail(out))
	}
	// Under its final name it is whole. Another process may have been faster.
	if err := os.Rename(fetched, jars); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return jars, nil
}
