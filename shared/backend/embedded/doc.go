// Package embedded starts the stores of an installation that has no servers of its own: Kafka's protocol and Redis
// inside this process, and a real PostgreSQL as its child. All listen on loopback only and end with the process.
// Their data is in their folders.
package embedded
