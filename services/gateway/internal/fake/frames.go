package fake

import "github.com/edumatrix/interlinked/services/gateway/hub"

// Take takes frames that wait for a connection, in order, as its transport does: up to maxFrames, or one more if the
// last one is a missed event that a heartbeat follows.
func Take(c *hub.Conn, maxFrames int) (frames [][]byte) {
	for len(frames) < maxFrames {
		before := len(frames)
		if frames, _, _ = c.Next(frames, 1); len(frames) == before {
			break
		}
	}
	return frames
}
