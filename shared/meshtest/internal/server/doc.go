// Package server starts the real servers that tests run against: Apache Kafka from its Maven artifacts on the
// machine's Java or in Docker, Redis as installed or in Docker, PostgreSQL as installed or downloaded, Jaeger built
// from its Go module. Each listens on a free port of loopback, keeps its data in a temporary folder, and, on Linux,
// ends with this process, however this process ends.
package server
