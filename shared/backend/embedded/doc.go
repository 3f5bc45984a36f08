// Package embedded starts the stores that an installation without servers of its own runs on: Kafka's protocol and
// Redis inside this process, and a real PostgreSQL as its child. All listen on loopback only, and are gone when the
// process is: what they keep is in their folders.
package embedded
