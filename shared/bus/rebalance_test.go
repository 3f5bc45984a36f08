package bus_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// Members join and leave a group while messages are published. The first deliveries of a key's messages must be in
// order, and no message may be missing. Two messages of a key must never be handled at the same time, neither by one
// member nor by two.
func TestSubscriber_KeepsTheOrderOfKeysWhileMembersComeAndGo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		const partitions, keys, maxMembers = 6, 50, 10
		changes := 8
		if testing.Short() {
			changes = 4
		}
		createTopic(t, k, "topic", partitions)
		recorded := newRecorder()

		var members sync.WaitGroup
		var took [maxMembers]atomic.Int64 // number of messages that each member has received
		joined := 0
		join := func() (leave func()) {
			mine := &took[joined]
			joined++
			s := subscriber(t, k, bus.SubscriberOptions{Window: 64, Drain: 5 * time.Second})
			messages := subscribe(t, s, "topic")
			members.Go(func() {
				for m := range messages {
					mine.Add(1)
					members.Go(func() { // a goroutine for each message, as in Watermill's router
						recorded.begin(m)
						time.Sleep(rand.N(4 * time.Millisecond))
						recorded.end(m)
						m.Ack()
					})
				}
			})
			return func() { _ = s.Close() }
		}

		ctx, enough := context.WithCancel(t.Context())
		defer enough()
		perKey := 0
		publishing := make(chan error, 1)
		p := publisher(t, k)
		go func() {
			for ; ctx.Err() == nil; perKey++ {
				var batch []*message.Message
				for key := range keys {
					batch = append(batch, keyed("k"+strconv.Itoa(key), strconv.Itoa(perKey)))
				}
				if err := p.Publish("topic", batch...); err != nil {
					publishing <- err
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			publishing <- nil
		}()

		hasShare := func(member int) {
			t.Helper()
			meshtest.Eventually(t, fmt.Sprintf("member %d has received messages", member), func() bool { return took[member].Load() > 0 })
		}
		leaves := []func(){join()}
		hasShare(0)
		for change := range changes {
			if change%3 < 2 {
				leaves = append(leaves, join())
				hasShare(joined - 1)
			} else {
				leaves[0]()
				leaves = leaves[1:]
			}
		}
		enough()
		require.NoError(t, <-publishing)
		meshtest.Eventually(t, "all are acknowledged", func() bool { return recorded.total() == keys*perKey })
		for _, leave := range leaves {
			leave()
		}
		members.Wait()

		require.Empty(t, recorded.violations)
		t.Logf("%d messages, %d repeats", keys*perKey, recorded.repeats)
		var sum int64
		for partition := range partitions {
			sum += max(0, committed(t, k, "topic", int32(partition)))
		}
		require.EqualValues(t, keys*perKey, sum, "all offsets are committed")
	})
}

// memberEnv is the environment variable that makes this test binary run as a member of a group instead of running the
// tests. A test starts such a process and kills it.
const memberEnv = "BUS_TEST_MEMBER"

// TestMain runs the tests, or a member of a group if memberEnv is set.
func TestMain(m *testing.M) {
	if settings := os.Getenv(memberEnv); settings != "" {
		brokers, rest, _ := strings.Cut(settings, " ")
		prefix, instance, _ := strings.Cut(rest, " ")
		err := member(backend.Kafka{Brokers: []string{brokers}, ClientID: "member", TopicPrefix: prefix}, instance)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// member joins the group "test" and prints the id of each message that it receives. It acknowledges all messages except
// those with the key "stuck". It runs until the process is killed.
func member(k backend.Kafka, instance string) error {
	s, err := bus.NewSubscriber(k, bus.SubscriberOptions{Group: "test", InstanceID: instance})
	if err != nil {
		return err
	}
	messages, err := s.Subscribe(context.Background(), "topic")
	if err != nil {
		return err
	}
	for m := range messages {
		if m.Metadata.Get(bus.MetadataKey) != "stuck" {
			m.Ack()
		}
		fmt.Println(m.UUID)
	}
	return s.Close()
}

// startMember runs the function member in a new process. The returned scanner reads the ids that this process prints.
func startMember(t testing.TB, k backend.Kafka, instance string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	executable, err := os.Executable()
	require.NoError(t, err)
	process := exec.Command(executable)
	process.Env = append(os.Environ(), strings.Join([]string{memberEnv + "=" + k.Brokers[0], k.TopicPrefix, instance}, " "))
	process.Stderr = os.Stderr
	out, err := process.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, process.Start())
	t.Cleanup(func() { _ = process.Process.Kill() })
	return process, bufio.NewScanner(out)
}

func kill(t testing.TB, process *exec.Cmd) {
	t.Helper()
	require.NoError(t, process.Process.Kill())
	_ = process.Wait() // returns an error, because the process was killed
}

// A member of a group is killed, and one second later a new member joins. The group waits until the session of the dead
// member has expired. Meanwhile the surviving member must go on consuming its own partitions.
func TestSubscriber_ContinuesWhileTheGroupWaitsForADeadMember(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		const partitions, longest = 4, 2 * time.Second // longest is well below the 6 s of the dead member's session
		createTopic(t, k, "topic", partitions)
		process, lines := startMember(t, k, "")
		var theirs atomic.Int64
		drain := func(lines *bufio.Scanner) {
			for lines.Scan() {
				theirs.Add(1)
			}
		}
		go drain(lines)

		var mu sync.Mutex
		last, gaps := map[int32]time.Time{}, map[int32]time.Duration{}
		messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{}), "topic")
		go func() {
			for m := range messages {
				p, _ := bus.PartitionOf(m.Context())
				mu.Lock()
				if at, ok := last[p]; ok {
					gaps[p] = max(gaps[p], time.Since(at))
				}
				last[p] = time.Now()
				mu.Unlock()
				m.Ack()
			}
		}()
		ctx, stop := context.WithCancel(t.Context())
		p := publisher(t, k)
		var publishing sync.WaitGroup
		defer publishing.Wait()
		defer stop()
		publishing.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				var batch []*message.Message
				for partition := range partitions {
					m := keyed("k", strconv.Itoa(n))
					m.Metadata.Set(bus.MetadataPartition, strconv.Itoa(partition))
					batch = append(batch, m)
				}
				if err := p.Publish("topic", batch...); err != nil {
					t.Errorf("publish: %v", err)
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
		fresh := func() (mine []int32) {
			mu.Lock()
			defer mu.Unlock()
			for p, at := range last {
				if time.Since(at) < 200*time.Millisecond {
					mine = append(mine, p)
				}
			}
			return mine
		}
		meshtest.Eventually(t, "each member has received messages", func() bool {
			before := theirs.Load()
			time.Sleep(300 * time.Millisecond)
			return len(fresh()) == partitions/2 && theirs.Load() > before
		})
		mine := fresh()
		mu.Lock()
		clear(gaps)
		mu.Unlock()
		kill(t, process)
		killed := time.Now()
		time.Sleep(time.Second)
		_, again := startMember(t, k, "")
		before := theirs.Load()
		go drain(again)
		meshtest.Eventually(t, "the new member has received messages", func() bool { return theirs.Load() > before })
		mu.Lock()
		defer mu.Unlock()
		for _, p := range mine {
			require.Less(t, max(gaps[p], time.Since(last[p])), longest, "partition %d was not consumed", p)
		}
		t.Logf("the dead member's partitions were read again after %v; the others had gaps of %v", time.Since(killed), gaps)
	})
}

func TestSubscriber_KilledWithMessagesInFlightSkipsNone(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, k backend.Kafka) {
		const before, after = 20, 40
		createTopic(t, k, "topic", 1)
		var batch []*message.Message
		for n := range before {
			batch = append(batch, keyed("quick", strconv.Itoa(n)))
		}
		batch = append(batch, keyed("stuck", "0"), keyed("stuck", "1"))
		for n := range after {
			batch = append(batch, keyed("quick", strconv.Itoa(before+n)))
		}
		publish(t, publisher(t, k), "topic", batch...)

		process, lines := startMember(t, k, "member")
		for range before + 1 + after {
			require.True(t, lines.Scan())
		}
		meshtest.Eventually(t, "finished messages are committed", func() bool { return committed(t, k, "topic", 0) == before })
		time.Sleep(1500 * time.Millisecond) // long enough for one more commit, which must not advance the offset
		require.EqualValues(t, before, committed(t, k, "topic", 0))
		kill(t, process)

		// The member comes back under the same InstanceID, so it does not have to wait until its old session expires.
		begun := time.Now()
		messages := subscribe(t, subscriber(t, k, bus.SubscriberOptions{InstanceID: "member"}), "topic")
		got := map[string]bool{}
		for len(got) < 2+after {
			m := receive(t, messages)
			if !got["stuck/0"] {
				require.NotEqual(t, "stuck/1", m.UUID)
			}
			got[m.UUID] = true
			m.Ack()
		}
		require.Less(t, time.Since(begun), 5*time.Second)
		require.True(t, got["stuck/0"] && got["stuck/1"])
		require.True(t, got["quick/"+strconv.Itoa(before)])
		require.False(t, got["quick/"+strconv.Itoa(before-1)], "committed messages are not delivered again")
		meshtest.Eventually(t, "all offsets are committed", func() bool { return committed(t, k, "topic", 0) == before+2+after })
	})
}

// The windows of both partitions of a member are full, and none of the messages is acknowledged. When a second member
// joins, one partition must still move to the second member.
func TestSubscriber_ReleasesAPartitionWhoseWindowIsFull(t *testing.T) {
	t.Parallel()
	k := meshtest.EmbeddedKafka(t)
	createTopic(t, k, "topic", 2)
	p := publisher(t, k)
	for partition := range int32(2) {
		for n := range 300 {
			m := keyed(fmt.Sprintf("p%d", partition), strconv.Itoa(n))
			publishTo(t, p, "topic", partition, m)
		}
	}
	first := subscribe(t, subscriber(t, k, bus.SubscriberOptions{Window: 4}), "topic")
	mine := []*message.Message{receive(t, first), receive(t, first)}
	time.Sleep(500 * time.Millisecond) // meanwhile the windows of both partitions fill up

	second := subscribe(t, subscriber(t, k, bus.SubscriberOptions{Window: 4}), "topic")
	moved := receive(t, second)
	require.Equal(t, "0", string(moved.Payload))
	still := 0
	for _, m := range mine {
		if m.Context().Err() == nil {
			still++
		}
	}
	require.Equal(t, 1, still, "the message of the partition that was not reassigned is still in flight")
}
