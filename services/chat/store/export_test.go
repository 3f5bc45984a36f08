package store

// The statements, for tests of their plans.
const (
	SQLConversations = sqlConversations
	SQLMembers       = sqlMembers
	MaxSmall         = maxSmall
)

var SQLOldest, SQLNewest = sqlOldest, sqlNewest
