// Package embedded starts the stores of an installation that has no servers of its own: a broker of Kafka's protocol
// and a server of Redis' protocol inside this process, and a real PostgreSQL as its child. All of them listen on
// loopback only and end with the process. Kafka and PostgreSQL keep their data in folders; Redis keeps none.
package embedded
