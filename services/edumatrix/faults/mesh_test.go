//go:build integration

package faults

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/services/edumatrix/internal/meshrun"
	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

const secret = "a secret that only tests know, long enough"

// mesh is the installation of one run: one process of each service, but two of chat and two of the gateway. It must be
// used by one goroutine only.
type mesh struct {
	t        testing.TB
	stand    *stand
	catalog  *catalog.Catalog
	prefix   string
	database string
	links    map[string]*Link
	services []*service
	kept     []Record        // records that were deleted from the topics
	torn     map[string]bool // topics that lost confirmed records
	skew     time.Duration   // the maximum offset of a service's clock from the machine's clock
	problems []string        // violations of promises that were found during the run
	away     []string        // stores that a fault has stopped or frozen, or is about to rewind
}

// service is one process of a mesh.
type service struct {
	*meshrun.Process
	name   string
	url    string
	wanted bool // whether the process has to run
	ready  bool // whether the process has been ready since it was started
	frozen bool
	ends   time.Time // the time at which watch found that the process had ended
}

func newMesh(t testing.TB, s *stand, programs meshrun.Binaries, plan Plan) *mesh {
	t.Helper()
	declared, err := catalog.Load()
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t, stand: s, catalog: declared, skew: plan.Skew,
		prefix: "f" + strings.ToLower(rand.Text())[:10], torn: map[string]bool{}, links: map[string]*Link{"kafka": s.broker}}
	m.database = m.prefix
	s.exec(t, "CREATE DATABASE "+m.database)
	s.emptyRedis(t)
	m.link("redis", s.redis.Addr())
	addresses := map[string]string{} // the addresses of the services themselves, not of their links
	for _, name := range services {
		addresses[name] = loopback(t)
		m.link(name, addresses[name])
	}
	for _, name := range services {
		program, number, _ := strings.Cut(name, "-")
		env := []string{"JWT_SECRET=" + secret, "POSTGRES_POOL_MAX=8", "TOPIC_PREFIX=" + m.prefix + ".",
			"KAFKA_BROKERS=" + s.broker.Addr(), "REDIS_URL=" + s.redisAt(m.links["redis"].Addr()),
			"PORT=" + addresses[name][strings.LastIndex(addresses[name], ":")+1:]}
		if program != "gateway" && program != "presence" {
			m.link("postgres of "+name, s.postgres.Addr())
			env = append(env, "DATABASE_URL="+s.database(m.database, m.links["postgres of "+name].Addr()))
			if off := plan.Skew * time.Duration(len(m.services)%3-1); off != 0 { // chat-1 gets -Skew and feed +Skew
				env = append(env, variableClock+"="+off.String())
			}
		}
		for _, peer := range config.Peers() {
			at := peer
			if peer == "chat" {
				at = "chat-" + max(number, "1")
			}
			env = append(env, strings.ToUpper(peer)+"_URL=http://"+m.links[at].Addr())
		}
		m.services = append(m.services, &service{Process: programs.Process(program, nil, env), name: name,
			url: "http://" + addresses[name]})
	}
	t.Cleanup(m.remove)
	for _, x := range m.services {
		m.start(x)
	}
	m.awaitReady(2 * time.Minute)
	return m
}

func loopback(t testing.TB) string { return fmt.Sprintf("127.0.0.1:%d", meshtest.FreePort(t)) }

func (m *mesh) link(name, to string) { m.links[name] = openLink(m.t, loopback(m.t), to) }

func (m *mesh) service(name string) *service {
	for _, x := range m.services {
		if x.name == name {
			return x
		}
	}
	m.t.Fatalf("there is no service %s", name)
	return nil
}

func (m *mesh) start(x *service) {
	x.wanted, x.ready, x.frozen, x.ends = true, false, false, time.Time{}
	x.Start(m.t)
}

func (m *mesh) kill(x *service) {
	x.wanted = false
	if x.Running() {
		x.Kill()
	}
}

func (m *mesh) freeze(x *service) {
	x.frozen = true
	x.Signal(syscall.SIGSTOP)
}

func (m *mesh) thaw(x *service) {
	x.frozen = false
	x.Signal(syscall.SIGCONT)
}

// watch acts as the operator: it restarts processes that have ended, and reports whether all processes are ready. It
// ignores processes that a fault has stopped. If a process was ready and ends without being stopped, a promise is
// broken. A process may end before it is ready, because its stores may be unavailable when it starts.
func (m *mesh) watch() (ready bool) {
	ready = true
	for _, x := range m.services {
		if !x.wanted {
			continue
		}
		if !x.Running() {
			ready = false
			if x.ends.IsZero() {
				x.ends = time.Now()
				if x.ready {
					m.broken("%s ended without being stopped:\n%s", x.name, x.Tail())
				}
			}
			if time.Since(x.ends) > 300*time.Millisecond {
				m.start(x)
			}
			continue
		}
		if !x.ready && !x.frozen {
			x.ready = m.isReady(x)
		}
		ready = ready && x.ready
	}
	return ready
}

// broken records a broken promise.
func (m *mesh) broken(format string, args ...any) {
	m.problems = append(m.problems, fmt.Sprintf(format, args...))
}

// isReady reports whether the /readyz of a service responds with status 200.
func (m *mesh) isReady(x *service) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, x.url+"/readyz", nil)
	if err != nil {
		m.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

func (m *mesh) awaitReady(within time.Duration) {
	m.t.Helper()
	for end := time.Now().Add(within); !m.watch(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			for _, x := range m.services {
				m.t.Logf("%s (ready %v) printed:\n%s", x.name, x.ready, x.Tail())
			}
			m.t.Fatalf("the mesh is not ready in %v", within)
		}
	}
}

// stop stops all processes with SIGTERM. An exit status other than 0 breaks a promise.
func (m *mesh) stop() {
	for _, x := range m.services {
		if x.wanted && x.Running() {
			x.wanted = false
			x.Signal(syscall.SIGTERM)
		}
	}
	for _, x := range m.services {
		if status := x.Wait(m.t); status != 0 {
			m.broken("%s was asked to stop and ended with status %d:\n%s", x.name, status, x.Tail())
		}
	}
}

// remove kills the processes, and deletes the database and the topics of the run. If the test has failed, it also calls
// keepOutput.
func (m *mesh) remove() {
	for _, x := range m.services {
		m.kill(x)
	}
	if m.t.Failed() {
		m.keepOutput()
	}
	m.stand.exec(m.t, "DROP DATABASE IF EXISTS "+m.database+" WITH (FORCE)")
	m.stand.forget(m.t, m.prefix+".")
}

// keepOutput writes the output of the processes to a folder that outlives the test.
func (m *mesh) keepOutput() {
	dir, err := os.MkdirTemp("", "edumatrix-faults-")
	if err != nil {
		m.t.Log(err)
		return
	}
	for _, x := range m.services {
		if err := os.WriteFile(filepath.Join(dir, x.name+".log"), []byte(x.Output()), 0o600); err != nil {
			m.t.Log(err)
		}
	}
	m.t.Logf("the output of the processes is in %s", dir)
}
