package fake

import "github.com/edumatrix/interlinked/services/gateway/hub"

// Take takes at most maxFrames of the frames that wait for a connection, in order, as its transport does.
func Take(c *hub.Conn, maxFrames int) (frames [][]byte) {
	for len(frames) < maxFrames {
		before := len(frames)
		if frames, _, _ = c.Next(frames, 1); len(frames) == before {
			break
		}
	}
	return frames
}
