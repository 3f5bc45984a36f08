// Package quota limits the amount and the rate of the work that the gateway does for one user, over all of the user's
// connections and requests, so that one user cannot delay others. Package intake limits the commands without an
// outcome, and package hub the frames that wait to be written.
package quota

import (
	"sync"
	"time"
)

// Limits of one user. Zero values stand for the defaults. A pair of fields, such as Frames and FrameBurst, is the rate
// per second and the capacity of a token bucket (Bucket).
type Limits struct {
	// Queries limits the queries in flight on WebSockets (0: 64). A query is in flight until its answer has left the
	// connection's queue.
	Queries int
	// Asked limits the queries that owners answer at the same time (0: 2). Further queries wait. With a limit of 4,
	// other users waited three times as long, on a machine with two cores for the whole mesh (BenchmarkHostile in
	// services/edumatrix/e2e).
	Asked int
	// Answers and AnswerBurst limit queries (0: 200 and 1,000, enough for about 75 answers of 50 kB at once). A query
	// counts once. Its answer counts once for every 4 KiB, but at most as often as the number in Answers. Further
	// queries wait.
	Answers, AnswerBurst int
	// Requests limits the HTTP requests in flight (0: 64).
	Requests int
	// Frames and FrameBurst limit frames and HTTP requests (0: 2,000 and 4,000). Each counts once, and once more for
	// every 4 KiB of the frame, or of the declared length of the request's body.
	Frames, FrameBurst int
	// Rooms and RoomBurst limit the rooms subscribed to (0: 100 and 1,000).
	Rooms, RoomBurst int
	// Connections and ConnectionBurst limit new connections (0: 10 and 256).
	Connections, ConnectionBurst int
}

func (l Limits) orDefault() Limits {
	for _, d := range []struct {
		limit *int
		value int
	}{
		{&l.Queries, 64}, {&l.Asked, 2}, {&l.Answers, 200}, {&l.AnswerBurst, 1000}, {&l.Requests, 64},
		{&l.Frames, 2000}, {&l.FrameBurst, 4000}, {&l.Rooms, 100}, {&l.RoomBurst, 1000},
		{&l.Connections, 10}, {&l.ConnectionBurst, 256},
	} {
		if *d.limit == 0 {
			*d.limit = d.value
		}
	}
	return l
}

// Users holds the users with connections or requests. It also keeps other users for a time (forgetAfter). The zero
// value has the default limits.
type Users struct {
	Limits Limits // must not be changed after the first call of Enter

	mu    sync.Mutex
	users map[string]*User
	swept time.Time
}

// User counts the work of one user against the limits.
type User struct {
	id     string
	users  *Users
	limits Limits

	turn sync.Mutex    // see Turn
	asks chan struct{} // see Ask

	mu          sync.Mutex
	holders     int // connections and requests
	left        time.Time
	queries     int
	requests    int
	frames      Bucket
	rooms       Bucket
	connections Bucket
	answers     Bucket
}

// forgetAfter is the minimum time for which a user without connections and requests is kept. With the default limits,
// all buckets of the user are then full, like those of a new User.
const forgetAfter = time.Minute

// Enter returns the user of a connection or request. Call Leave when the connection or request ends.
func (u *Users) Enter(id string) *User {
	now := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.users == nil {
		u.users = map[string]*User{}
		u.Limits = u.Limits.orDefault()
		u.swept = now
	}
	if now.Sub(u.swept) > forgetAfter {
		u.swept = now
		for id, user := range u.users {
			if user.holders == 0 && now.Sub(user.left) > forgetAfter {
				delete(u.users, id)
			}
		}
	}
	user := u.users[id]
	if user == nil {
		l := u.Limits
		user = &User{id: id, users: u, limits: l, frames: NewBucket(l.Frames, l.FrameBurst),
			rooms: NewBucket(l.Rooms, l.RoomBurst), connections: NewBucket(l.Connections, l.ConnectionBurst),
			answers: NewBucket(l.Answers, l.AnswerBurst), asks: make(chan struct{}, l.Asked)}
		u.users[id] = user
	}
	user.holders++
	return user
}

// Turn calls the function handle while no other call of Turn for the user runs, over all connections. So at most one
// goroutine that handles frames of the user competes for the locks that all users share. The function must not block.
func (u *User) Turn(handle func()) {
	u.turn.Lock()
	defer u.turn.Unlock()
	handle()
}

// Leave must be called once for each call of Enter, at the end of the connection or request.
func (u *User) Leave() {
	u.users.mu.Lock()
	defer u.users.mu.Unlock()
	u.holders--
	u.left = time.Now()
}

// Connect reports whether the user may open another connection now, and if so, counts it.
func (u *User) Connect() bool { return u.take(&u.connections, 1) }

// Subscribe reports whether the user may subscribe to more rooms now, and if so, counts them.
func (u *User) Subscribe(rooms int) bool { return u.take(&u.rooms, rooms) }

func (u *User) take(b *Bucket, n int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return b.Take(time.Now(), n)
}

// Frame counts a frame or an HTTP request of the given number of bytes, and returns how long to wait before handling
// it. If the wait would be longer than the duration max, Frame counts nothing and returns max and false. The caller
// must then refuse the frame or request.
func (u *User) Frame(bytes int, max time.Duration) (wait time.Duration, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.frames.Reserve(time.Now(), Cost(bytes), max)
}

// Cost returns the number of tokens that a frame of the given number of bytes takes from a Bucket.
func Cost(bytes int) int { return 1 + bytes>>12 }

// Query reports whether the user may have another query in flight, and if so, counts it. Call QueriesDone when it ends.
func (u *User) Query() bool { return u.begin(&u.queries, u.limits.Queries) }

// QueriesDone reduces the number of queries in flight by n.
func (u *User) QueriesDone(n int) { u.end(&u.queries, n) }

// Request reports whether the user may have another HTTP request in flight, and if so, counts it. Call RequestDone when
// it ends.
func (u *User) Request() bool { return u.begin(&u.requests, u.limits.Requests) }

// RequestDone reduces the number of requests in flight by one.
func (u *User) RequestDone() { u.end(&u.requests, 1) }

func (u *User) begin(count *int, limit int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if *count >= limit {
		return false
	}
	*count++
	return true
}

func (u *User) end(count *int, n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	*count -= n
}
