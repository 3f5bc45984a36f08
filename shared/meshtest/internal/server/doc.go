// Package server starts the real servers that tests run against: Apache Kafka from its Maven artifacts on the machine's
// Java or in Docker, Redis as installed or in Docker, PostgreSQL as installed or downloaded, Jaeger built from its Go
// module. Each server listens on a free port of loopback and, on Linux, ends with this process, however this process
// ends. Jaeger keeps its data in memory, a server in Docker keeps its data in the container, and any other server keeps
// its data in a temporary folder.
package server
