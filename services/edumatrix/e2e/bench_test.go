//go:build integration

package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/shared/client"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// BenchmarkMesh measures whole meshes in one run: how long a message takes from its sender's socket to another user's at
// 200 messages a second, and the highest rate of durable messages that was held. Clients and servers share the machine.
func BenchmarkMesh(b *testing.B) {
	b.Run("embedded", func(b *testing.B) { benchmark(b, embedded(b), "") })
	b.Run("separate", func(b *testing.B) {
		kafka, redis, postgres := meshtest.NewKafkaServer(b), meshtest.NewRedisServer(b), meshtest.NewPostgresServer(b)
		r := redis.Settings()
		m := separateOn(b, postgres.URL(), redisURL(r.Host, r.Port, r.Password, r.URL),
			strings.Join(kafka.Settings().Brokers, ","))
		benchmark(b, m, fmt.Sprintf("kafka=%d redis=%d postgres=%d", kafka.PID(), redis.PID(), postgres.PID()))
	})
}

func benchmark(b *testing.B, m *mesh, stores string) {
	const pairs = 40
	p := newPairs(b, m, pairs)
	p.load(b, 200, 3*time.Second) // warm
	before := m.cpu(stores)
	quiet := p.load(b, 200, 15*time.Second)
	b.Logf("200 messages/s: p50 %v, p99 %v, lost %d", quiet.p50, quiet.p99, quiet.sent-quiet.seen)
	b.Logf("CPU time in these %v: %s", quiet.took.Round(time.Second), spent(before, m.cpu(stores)))
	b.ReportMetric(float64(quiet.p50.Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(quiet.p99.Microseconds())/1000, "p99-ms")

	highest := measured{}
	for rate := 500; rate <= 32_000; rate = rate * 3 / 2 {
		before = m.cpu(stores)
		got := p.load(b, rate, 6*time.Second)
		held := got.seen == got.sent && got.rate() > 0.95*float64(rate) && got.p99 < time.Second
		b.Logf("%d messages/s asked: %.0f/s held=%v, p50 %v, p99 %v, lost %d, CPU: %s", rate, got.rate(), held, got.p50,
			got.p99, got.sent-got.seen, spent(before, m.cpu(stores)))
		if !held {
			break
		}
		highest = got
	}
	b.ReportMetric(highest.rate(), "held-msg/s")
	b.ReportMetric(0, "ns/op")
}

// pairs are people who talk two by two, one of each on either gateway.
type pairs struct {
	senders       []*client.Client
	conversations []string

	mu     sync.Mutex
	begun  map[string]time.Time
	delays []time.Duration
	seen   atomic.Int64
}

func newPairs(b *testing.B, m *mesh, n int) *pairs {
	p := &pairs{begun: map[string]time.Time{}}
	for i := range n {
		sender := m.connect(b, someone("sender"), i)
		receiver := someone("receiver")
		started := sender.do("chat.start_direct", map[string]any{"user_id": receiver})
		p.senders = append(p.senders, sender.Client)
		p.conversations = append(p.conversations, conversationOf(started))
		ctx, cancel := timeout()
		c, err := client.Dial(ctx, client.Options{URL: m.socket(i + 1), Token: mint(b, receiver, time.Hour), OnEvent: p.took})
		cancel()
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(c.Close)
	}
	return p
}

func (p *pairs) took(e client.Event) {
	if e.Type != "chat.message_sent" {
		return
	}
	now, body := time.Now(), field(e, "body")
	p.mu.Lock()
	if at, ok := p.begun[body]; ok {
		p.delays = append(p.delays, now.Sub(at))
		delete(p.begun, body)
		p.seen.Add(1)
	}
	p.mu.Unlock()
}

type measured struct {
	sent, seen int64
	took       time.Duration
	p50, p99   time.Duration
}

func (m measured) rate() float64 { return float64(m.seen) / m.took.Seconds() }

// load sends at a steady rate, whatever comes back, and waits up to 5 s for what is under way at the end.
func (p *pairs) load(b *testing.B, rate int, lasting time.Duration) measured {
	p.mu.Lock()
	p.begun, p.delays = map[string]time.Time{}, nil
	p.mu.Unlock()
	p.seen.Store(0)
	ctx, cancel := context.WithTimeout(context.Background(), lasting+10*time.Second)
	defer cancel()
	var sent atomic.Int64
	var wait sync.WaitGroup
	begin := time.Now()
	for n := 0; time.Since(begin) < lasting; n++ {
		if ahead := time.Duration(n)*time.Second/time.Duration(rate) - time.Since(begin); ahead > 0 {
			time.Sleep(ahead) // the load's own clock
		}
		i := n % len(p.senders)
		body := uuid.NewString()
		p.mu.Lock()
		p.begun[body] = time.Now()
		p.mu.Unlock()
		sent.Add(1)
		wait.Go(func() {
			if _, err := p.senders[i].Command(ctx, "chat.send_message",
				map[string]any{"conversation_id": p.conversations[i], "body": body}); err != nil {
				sent.Add(-1) // not acknowledged: not counted as held
			}
		})
	}
	wait.Wait()
	took := time.Since(begin)
	for end := time.Now().Add(5 * time.Second); p.seen.Load() < sent.Load() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.Sort(p.delays)
	m := measured{sent: sent.Load(), seen: p.seen.Load(), took: took}
	if n := len(p.delays); n > 0 {
		m.p50, m.p99 = p.delays[n/2], p.delays[n*99/100]
	}
	return m
}

// cpu is the processor time that each process has used so far.
func (m *mesh) cpu(stores string) map[string]time.Duration {
	all := map[string]time.Duration{"clients": cpuOf(os.Getpid())}
	for i, p := range m.processes {
		name := p.Name
		if _, twice := all[name]; twice {
			name += "-" + strconv.Itoa(i)
		}
		all[name] = cpuOf(p.PID())
		for child, d := range children(p.PID()) {
			all[child] += d
		}
	}
	for _, store := range strings.Fields(stores) {
		name, pid, _ := strings.Cut(store, "=")
		n, _ := strconv.Atoi(pid)
		all[name] += cpuOf(n)
		for _, d := range children(n) {
			all[name] += d
		}
	}
	return all
}

func spent(before, after map[string]time.Duration) string {
	var all []string
	for name, d := range after {
		all = append(all, fmt.Sprintf("%s %.1fs", name, (d-before[name]).Seconds()))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// cpuOf reads user and system time of a process from /proc, in ticks of a hundredth of a second.
func cpuOf(pid int) time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// children gives the time of a process's descendants (the embedded database server), by name.
func children(pid int) map[string]time.Duration {
	all := map[string]time.Duration{}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		for _, child := range strings.Fields(string(raw)) {
			n, _ := strconv.Atoi(child)
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", n))
			all[strings.TrimSpace(string(name))] += cpuOf(n)
			for grandchild, d := range children(n) {
				all[grandchild] += d
			}
		}
	}
	return all
}
