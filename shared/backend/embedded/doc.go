// Package embedded starts the stores of an installation that has no servers of its own: a broker of Kafka's protocol
// and a server of Redis' protocol inside this process, and a real PostgreSQL as a child of this process. All of them
// listen on loopback only. They end with the process, except that PostgreSQL outlives a killed process on systems other
// than Linux. PostgreSQL keeps its data in a folder, and so does Kafka unless KafkaOptions.Dir is empty. Redis keeps
// its data in memory.
package embedded
