//go:build integration

package e2e

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/edumatrix/interlinked/services/edumatrix/internal/meshrun"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// There are 1,000 connections, in 500 conversations of two users. The first workload uses all conversations, and the
// second workload only the first 40. Each load (see the type load) sends messages in a random third of the
// conversations that its workload uses.
const (
	benchConversations = 500
	benchFew           = 40
)

// BenchmarkMesh measures whole meshes: the time from a sender's socket to the receiver's, the CPU time of each process
// per message, and the highest rate of messages that the mesh sustains (see measured.held). For `edumatrix up`, it also
// measures the CPU time without clients. Clients and servers share the machine.
//
// BENCH_BEFORE names another checkout of the project, which the benchmark builds too. The benchmark then measures both
// builds in turns (before, after, before, after). BENCH_ROUNDS is the number of rounds; the default is 2, or 1 without
// BENCH_BEFORE. BENCH_SECONDS is the time in seconds for which each rate is measured; the default is 4. The two fixed
// rates (200 and 1,000 messages per second) are measured for twice as long. BENCH_ONLY=embedded and BENCH_ONLY=separate
// measure only one kind of mesh.
func BenchmarkMesh(b *testing.B) {
	r := &benchmark{seconds: setting(b, "BENCH_SECONDS", 4), rounds: 1, held: map[string]int{}}
	r.variants = []variant{{"after", binaries}}
	if dir := os.Getenv("BENCH_BEFORE"); dir != "" {
		before, err := meshrun.BuildIn(dir, meshrun.Programs)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(before.Remove)
		r.variants, r.rounds = []variant{{"before", before}, {"after", binaries}}, 2
	}
	r.rounds = setting(b, "BENCH_ROUNDS", r.rounds)
	only := os.Getenv("BENCH_ONLY")
	if only != "separate" {
		b.Run("embedded", r.embedded)
	}
	if only != "embedded" {
		b.Run("separate", r.separate)
	}
	b.Log(r.table())
}

func setting(b *testing.B, name string, otherwise int) int {
	b.Helper()
	given := os.Getenv(name)
	if given == "" {
		return otherwise
	}
	n, err := strconv.Atoi(given)
	if err != nil || n < 1 {
		b.Fatalf("%s=%s: must be a number of at least 1", name, given)
	}
	return n
}

// variant is a build of the mesh.
type variant struct {
	name string
	bin  meshrun.Binaries
}

type benchmark struct {
	variants []variant
	rounds   int
	seconds  int
	figures  []figure
	held     map[string]int // the highest sustained rate of the previous round, by stores, variant and workload
}

// inTurns calls measure for each variant in each round. The argument first is true in the first round.
func (r *benchmark) inTurns(b *testing.B, measure func(b *testing.B, v variant, first bool)) {
	for round := range r.rounds {
		for _, v := range r.variants {
			b.Run(fmt.Sprintf("round-%d-%s", round+1, v.name), func(b *testing.B) {
				measure(b, v, round == 0)
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

func (r *benchmark) embedded(b *testing.B) {
	r.inTurns(b, func(b *testing.B, v variant, first bool) {
		m := embeddedOf(b, v.bin)
		if first {
			r.idle(b, v, m)
		}
		r.measure(b, "embedded", v, m, nil)
	})
}

func (r *benchmark) separate(b *testing.B) {
	kafka, redis, postgres := meshtest.NewKafkaServer(b), meshtest.NewRedisServer(b), meshtest.NewPostgresServer(b)
	rs := redis.Settings()
	s := stores{"kafka": kafka.PID(), "redis": redis.PID(), "postgres": postgres.PID()}
	warm := false
	r.inTurns(b, func(b *testing.B, v variant, _ bool) {
		database := postgres.Database(b) // a new database each time, because the schemas of the builds may differ
		m := separateOf(b, v.bin, database, redisURL(rs.Host, rs.Port, rs.Password, rs.URL),
			strings.Join(kafka.Settings().Brokers, ","), "TOPIC_PREFIX="+someone(v.name)+".")
		if !warm { // the JIT compiler of Kafka does most of its work in the first half minute under load
			warm = true
			c := newCrowd(b, m, benchFew)
			c.send(b, func() map[string]time.Duration { return nil }, benchFew, 800, 30*time.Second)
		}
		r.measure(b, "separate", v, m, s)
	})
}

// idle measures the CPU time that a mesh without clients uses.
func (r *benchmark) idle(b *testing.B, v variant, m *mesh) {
	const settle, lasting = 5 * time.Second, 30 * time.Second
	time.Sleep(settle)
	before := m.cpu(nil)
	time.Sleep(lasting)
	used := total(spent(before, m.cpu(nil)))
	r.add(b, "embedded", v, "idle, % of a core", 100*used.Seconds()/lasting.Seconds())
}

// measure measures the figures of one mesh under load.
func (r *benchmark) measure(b *testing.B, stores string, v variant, m *mesh, s stores) {
	lasting := time.Duration(r.seconds) * time.Second
	cpu := func() map[string]time.Duration { return m.cpu(s) }
	c := newCrowd(b, m, benchConversations)
	send := func(conversations, rate int, lasting time.Duration) measured {
		got := c.send(b, cpu, conversations, rate, lasting)
		b.Logf("%s %s, %d conversations: %v", stores, v.name, conversations, got)
		return got
	}
	send(benchConversations, 400, lasting) // warm up

	for _, rate := range []int{200, 1000} {
		// Measure for twice as long, because p99 needs many messages and these rates are low.
		got := send(benchConversations, rate, 2*lasting)
		at := fmt.Sprintf("at %d/s", rate)
		r.add(b, stores, v, at+", p50 ms", milliseconds(got.p50))
		r.add(b, stores, v, at+", p99 ms", milliseconds(got.p99))
		r.costs(b, stores, v, at, got)
	}
	for _, conversations := range []int{benchConversations, benchFew} {
		of := fmt.Sprintf("%d conversations", conversations)
		key := stores + v.name + of
		start := 1500
		if known, again := r.held[key]; again {
			start = known
		}
		highest := search(start, func(rate int) measured { return send(conversations, rate, lasting) })
		r.held[key] = max(100, highest.asked)
		r.add(b, stores, v, of+", held msg/s", highest.rate)
		r.add(b, stores, v, of+", p99 ms at that", milliseconds(highest.p99))
		r.costs(b, stores, v, of+", at that", highest)
	}
}

// search returns the result of the highest rate that the mesh sustains, with an accuracy of about 15 %, or a zero
// result if the mesh sustains none of the tried rates. It begins with the rate in the parameter start, and multiplies
// or divides the rate by 4/3 until one rate is sustained and the next higher one is not. Then it tries one rate between
// the two. It tries only rates from 50 to 50,000 messages per second.
func search(start int, try func(rate int) measured) (highest measured) {
	const step = 4. / 3
	below, above := 0, 0
	for rate := start; (below == 0 || above == 0) && rate >= 50 && rate <= 50_000; {
		if got := try(rate); got.held() {
			highest, below, rate = got, rate, int(float64(rate)*step)
		} else {
			above, rate = rate, int(float64(rate)/step)
		}
	}
	if below > 0 && above > 0 {
		if got := try(int(float64(below) * 1.15)); got.held() {
			highest = got
		}
	}
	return highest
}

// costs adds the CPU time per message: the sum of all processes except the clients, and one figure for each process and
// for the clients.
func (r *benchmark) costs(b *testing.B, stores string, v variant, at string, m measured) {
	r.add(b, stores, v, at+", µs CPU/msg", each(total(m.cpu), m.seen))
	for _, name := range slices.Sorted(maps.Keys(m.cpu)) {
		r.add(b, stores, v, at+", µs CPU/msg of "+name, each(m.cpu[name], m.seen))
	}
}

// figure is one measured number of one round.
type figure struct {
	stores, variant, name string
	value                 float64
}

func (r *benchmark) add(b *testing.B, stores string, v variant, name string, value float64) {
	r.figures = append(r.figures, figure{stores, v.name, name, value})
	if !strings.Contains(name, " of ") {
		b.ReportMetric(value, strings.NewReplacer(", ", "-", " ", "-").Replace(name))
	}
}

// table returns the figures of all rounds with their medians and, for two variants, the ratio of the medians.
func (r *benchmark) table() string {
	type key struct{ stores, name string }
	values := map[key]map[string][]float64{}
	var order []key
	for _, f := range r.figures {
		k := key{f.stores, f.name}
		if values[k] == nil {
			values[k] = map[string][]float64{}
			order = append(order, k)
		}
		values[k][f.variant] = append(values[k][f.variant], f.value)
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\nstores\tfigure")
	for _, v := range r.variants {
		fmt.Fprintf(w, "\t%s", v.name)
	}
	if len(r.variants) == 2 {
		fmt.Fprint(w, "\tafter/before")
	}
	fmt.Fprintln(w)
	for _, k := range order {
		fmt.Fprintf(w, "%s\t%s", k.stores, k.name)
		for _, v := range r.variants {
			fmt.Fprintf(w, "\t%s", numbers(values[k][v.name]))
		}
		if len(r.variants) == 2 {
			before, after := median(values[k]["before"]), median(values[k]["after"])
			if before > 0 {
				fmt.Fprintf(w, "\t%.2f", after/before)
			}
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // never fails, because it writes to memory
	return text.String()
}

func numbers(all []float64) string {
	if len(all) == 0 {
		return "-"
	}
	var texts []string
	for _, f := range all {
		texts = append(texts, fmt.Sprintf("%.*f", digits(f), f))
	}
	if len(all) == 1 {
		return texts[0]
	}
	m := median(all)
	return fmt.Sprintf("%.*f (%s)", digits(m), m, strings.Join(texts, " "))
}

// digits returns the number of decimals with which a figure is printed.
func digits(f float64) int {
	if f < 100 {
		return 1
	}
	return 0
}

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
