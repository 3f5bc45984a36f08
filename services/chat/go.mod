module github.com/edumatrix/interlinked/services/chat

go 1.26.0
