package faults

import (
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Link is a proxy that can disturb the TCP connections through it. Unlike with Toxiproxy, a connection can hang for a
// while and then continue without a loss of data. Toxiproxy's "timeout" discards the data that arrive meanwhile, and
// then closes the connection.
type Link struct {
	addr, to string
	done     chan struct{} // closed by Close

	mu         sync.Mutex
	listener   net.Listener // nil while the link is cut
	ways       map[*way]bool
	conditions Conditions
	changed    chan struct{} // closed when the conditions change
	running    sync.WaitGroup
}

// Conditions are the state of a link.
type Conditions struct {
	Silent bool          // nothing gets through, and no error is reported
	Reset  bool          // existing and new connections are reset
	Delay  time.Duration // the delay of every byte, in each direction
	Rate   int           // bytes per second, in each direction; 0: unlimited
}

// way is one connection through a link: near is the socket of the caller, far the socket of the target.
type way struct{ near, far net.Conn }

// NewLink opens a link that listens at the first address and forwards each connection to the second one.
func NewLink(addr, to string) (*Link, error) {
	l := &Link{addr: addr, to: to, done: make(chan struct{}), ways: map[*way]bool{}, changed: make(chan struct{})}
	if err := l.Mend(); err != nil {
		return nil, err
	}
	return l, nil
}

// Addr returns the address of the link's listener.
func (l *Link) Addr() string { return l.addr }

// Cut ends all connections, and refuses new ones until Mend is called.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener != nil {
		_ = l.listener.Close()
		l.listener = nil
	}
	l.end(false)
}

// Change changes the conditions for new and existing connections.
func (l *Link) Change(w Conditions) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.change(w)
	if w.Reset {
		l.end(true)
	}
}

// Mend restores the normal conditions and accepts connections again.
func (l *Link) Mend() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.change(Conditions{})
	if l.listener != nil {
		return nil
	}
	listener, err := net.Listen("tcp4", l.addr)
	if err != nil {
		return fmt.Errorf("open the link to %s: %w", l.to, err)
	}
	l.listener = listener
	l.running.Go(func() { l.accept(listener) })
	return nil
}

// Close ends the link and all of its goroutines.
func (l *Link) Close() {
	l.Cut()
	close(l.done)
	l.running.Wait()
}

func (l *Link) change(w Conditions) {
	l.conditions = w
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Link) now() (Conditions, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conditions, l.changed
}

// end closes all connections. If the parameter reset is true, it resets them.
func (l *Link) end(reset bool) {
	for w := range l.ways {
		w.end(reset)
	}
}

func (w *way) end(reset bool) {
	for _, c := range []net.Conn{w.near, w.far} {
		if tcp, ok := c.(*net.TCPConn); ok && reset {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
}

func (l *Link) accept(listener net.Listener) {
	for {
		near, err := listener.Accept()
		if err != nil {
			return
		}
		l.running.Go(func() { l.carry(listener, near) })
	}
}

// carry forwards one connection until it ends.
func (l *Link) carry(listener net.Listener, near net.Conn) {
	w := &way{near: near}
	if conditions, _ := l.now(); conditions.Reset {
		w.far = near
		w.end(true)
		return
	}
	far, err := net.DialTimeout("tcp4", l.to, 5*time.Second)
	if err != nil {
		_ = near.Close()
		return
	}
	w.far = far
	l.mu.Lock()
	standing := l.listener == listener
	if standing {
		l.ways[w] = true
	}
	l.mu.Unlock()
	if !standing { // the link was cut while the far end was dialed
		w.end(false)
		return
	}
	var both sync.WaitGroup
	both.Go(func() { l.pipe(near, far) })
	both.Go(func() { l.pipe(far, near) })
	both.Wait()
	l.mu.Lock()
	delete(l.ways, w)
	l.mu.Unlock()
	w.end(false)
}

// chunk is the data of one read.
type chunk struct {
	at    time.Time
	bytes []byte
}

// pipe forwards one direction. It delays the data, and the close of the connection, as the conditions require.
func (l *Link) pipe(from, to net.Conn) {
	chunks := make(chan chunk, 64)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(chunks)
		for {
			buf := make([]byte, 16<<10)
			n, err := from.Read(buf)
			if n > 0 {
				chunks <- chunk{time.Now(), buf[:n]}
			}
			if err != nil {
				return
			}
		}
	})
	broken := false
	for c := range chunks {
		if !broken && (!l.hold(c) || !write(to, c.bytes)) {
			broken = true
			_ = from.Close() // makes the blocked read return
		}
	}
	reading.Wait()
	l.hold(chunk{at: time.Now()})
	if tcp, ok := to.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	_ = from.Close()
}

func write(to io.Writer, b []byte) bool {
	_, err := to.Write(b)
	return err == nil
}

// hold waits until a chunk may be passed on. It returns false if the link is closed first.
func (l *Link) hold(c chunk) bool {
	var spent time.Time // the time until which the chunk occupies the line
	for {
		conditions, changed := l.now()
		if conditions.Rate > 0 && spent.IsZero() {
			spent = time.Now().Add(time.Duration(len(c.bytes)) * time.Second / time.Duration(conditions.Rate))
		}
		wait := time.Until(c.at.Add(conditions.Delay))
		if conditions.Rate > 0 {
			wait = max(wait, time.Until(spent))
		}
		if !conditions.Silent && wait <= 0 {
			return true
		}
		if conditions.Silent {
			wait = time.Hour
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-l.done:
			timer.Stop()
			return false
		}
		timer.Stop()
	}
}
