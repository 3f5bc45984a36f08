package hub

// Reason says why the gateway ends a connection: a WebSocket close code with a text. Below 3500 a client does well to
// connect again, after a while chosen at random; from 3500 on the same would happen again.
type Reason struct {
	Code int
	Text string
}

// Reconnect reports whether the client should connect again.
func (r Reason) Reconnect() bool { return r.Code < 3500 && r.Code != TooLarge.Code }

// The reasons there are.
var (
	// Left is WebSocket's own code for a normal end: the client closed the connection.
	Left = Reason{1000, "closed by the client"}
	// TooLarge is WebSocket's own code for a frame above the bound.
	TooLarge = Reason{1009, "frame too large"}

	Shutdown     = Reason{3000, "this gateway ends, connect again"}
	Slow         = Reason{3001, "too slow: more is waiting than is kept for one connection"}
	NoPong       = Reason{3002, "no answer to pings"}
	TokenExpired = Reason{3003, "token expired, connect again with a new one"}
	Lost         = Reason{3004, "connection lost"}
	Internal     = Reason{3005, "internal error, connect again"}
	Restored     = Reason{3006, "a log was restored, connect again"}
	Interrupted  = Reason{3009, "events were lost on the way here, connect again"}
	Unavailable  = Reason{3007, "the token cannot be checked now, connect again later"}
	TooFast      = Reason{3008, "too many connections of one user in a short time, connect again later"}

	HandshakeTimeout   = Reason{3500, "no token, or no resume frame, within the time for it"}
	Unauthorized       = Reason{3501, "token does not hold"}
	TooManyConnections = Reason{3502, "too many connections of one user"}
	SessionEnded       = Reason{3503, "session ended by its user"}
)
