package caddymodule

import "github.com/caddy-usher/usher/async"

// taskTranslation are the texts of the page of a task in one language.
type taskTranslation struct {
	// states has the few words for each state, and cancelling for a task that is to be
	// cancelled.
	states     [async.Cancelled + 1]string
	cancelling string

	// attempts takes a number.
	attempts string

	// open is the text of the link to the result. hint says that the page refreshes.
	open, hint string
}

func taskStates(pending, running, done, failed, dead, cancelled string) [async.Cancelled + 1]string {
	return [...]string{
		async.Pending: pending, async.Running: running, async.Done: done, async.Failed: failed, async.Dead: dead, async.Cancelled: cancelled,
	}
}

var (
	taskEnglish = taskTranslation{
		states:     taskStates("Waiting for its turn", "In progress", "Done", "It failed", "Given up", "Cancelled"),
		cancelling: "Being cancelled", attempts: "Attempts: %d", open: "Open the result", hint: "This page refreshes by itself.",
	}
	taskGerman = taskTranslation{
		states:     taskStates("In der Warteschlange", "In Arbeit", "Fertig", "Fehlgeschlagen", "Aufgegeben", "Abgebrochen"),
		cancelling: "Wird abgebrochen", attempts: "Versuche: %d", open: "Ergebnis öffnen", hint: "Diese Seite aktualisiert sich von selbst.",
	}
	taskFrench = taskTranslation{
		states:     taskStates("En attente de son tour", "En cours", "Terminé", "Échec", "Abandonné", "Annulé"),
		cancelling: "Annulation en cours", attempts: "Tentatives : %d", open: "Ouvrir le résultat", hint: "Cette page s’actualise d’elle-même.",
	}
	taskSpanish = taskTranslation{
		states:     taskStates("Esperando su turno", "En curso", "Terminado", "Ha fallado", "Abandonado", "Cancelado"),
		cancelling: "Cancelándose", attempts: "Intentos: %d", open: "Abrir el resultado", hint: "Esta página se actualiza por sí sola.",
	}
	taskChinese = taskTranslation{
		states:     taskStates("等待处理", "处理中", "已完成", "失败", "已放弃", "已取消"),
		cancelling: "正在取消", attempts: "尝试次数：%d", open: "打开结果", hint: "此页面会自动刷新。",
	}
)
