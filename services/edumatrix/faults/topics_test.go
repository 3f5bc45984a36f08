//go:build integration

package faults

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// forget deletes all records on the topics of the logs, as Kafka does at the end of their retention. It keeps the
// records in n.m.kept, so that Check can still compare them with the log. It returns false if the broker is
// unavailable; some records may then be left.
func (n *nemesis) forget() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := n.m.forget(ctx)
	if err != nil {
		n.t.Logf("forget: Kafka is unavailable: %v", err) // the records deleted so far are in m.kept
	}
	n.lost(func(topic string) bool { _, event := n.m.logged(topic); return event })
	return err == nil
}

func (m *mesh) forget(ctx context.Context) error {
	k := m.stand.brokers(m.prefix + ".")
	client, err := impatient(k)
	if err != nil {
		return err
	}
	defer client.Close()
	var topics []string
	for _, owner := range owners {
		for _, t := range m.catalog.LoggedTopics(owner) {
			topics = append(topics, k.Topic(t.Name))
		}
	}
	admin := kadm.NewClient(client)
	ends, err := admin.ListEndOffsets(ctx, topics...)
	if err = errors.Join(err, ends.Error()); err != nil {
		return err
	}
	records, _, err := m.readTopics(ctx)
	if err != nil {
		return err
	}
	m.kept = append(m.kept, records...)
	deleted, err := admin.DeleteRecords(ctx, ends.Offsets())
	return errors.Join(err, deleted.Error())
}

// lost sets Dead to false for the poisoned messages on each topic for which is(topic) returns true. Such a topic has
// lost records, perhaps also poisoned messages that no consumer has read yet. These messages need not become dead
// letters.
func (n *nemesis) lost(is func(topic string) bool) {
	for i, p := range n.poisoned {
		n.poisoned[i].Dead = p.Dead && !is(p.Topic)
	}
}

// withKept returns the records on the topics together with the records that forget deleted. It returns each record
// once, and the records of each partition in order.
func (m *mesh) withKept(records []Record) []Record {
	all := slices.Concat(m.kept, records)
	slices.SortStableFunc(all, func(a, b Record) int {
		return cmp.Or(strings.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition),
			cmp.Compare(a.Offset, b.Offset))
	})
	return slices.CompactFunc(all, func(a, b Record) bool {
		return a.Topic == b.Topic && a.Partition == b.Partition && a.Offset == b.Offset
	})
}

// kafkaData returns the data folder of the broker, which must be running.
func (s *stand) kafkaData() string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.kafka.PID()))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, argument := range strings.Split(string(line), "\x00") {
		if strings.HasSuffix(argument, "server.properties") {
			return filepath.Join(filepath.Dir(argument), "data")
		}
	}
	s.t.Fatalf("Kafka was not started with a configuration file: %q", line)
	return ""
}

// tear removes the last records from one partition of a topic while the broker is stopped. The same happens when the
// only machine that has these records crashes before it has written them to disk.
func (n *nemesis) tear(data, topic string) {
	partitions, err := filepath.Glob(filepath.Join(data, n.m.prefix+"."+topic+"-*"))
	if err != nil || len(partitions) == 0 {
		n.t.Fatalf("there are no partitions of %s in %s: %v", topic, data, err)
	}
	segments, err := filepath.Glob(filepath.Join(partitions[n.random.IntN(len(partitions))], "*.log"))
	if err != nil || len(segments) == 0 {
		n.t.Fatalf("there are no segments of %s in %s: %v", topic, data, err)
	}
	last := segments[len(segments)-1]
	file, err := os.Stat(last)
	if err == nil {
		err = os.Truncate(last, max(0, file.Size()-int64(500+n.random.IntN(8000))))
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.m.torn[topic] = true
	n.lost(func(t string) bool { return t == topic })
}
