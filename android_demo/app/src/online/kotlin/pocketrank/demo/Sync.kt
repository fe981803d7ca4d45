package pocketrank.demo

import android.app.Activity
import android.app.AlertDialog
import android.content.pm.ApplicationInfo
import android.widget.EditText
import pocketrank.sync.PackClient
import pocketrank.sync.Synced

/** Asks for a server and a token, as `pocketrank token USER` prints it, and gets the pack of the token's user. */
object Sync {
    const val IS_THERE = true

    fun ask(activity: Activity, desk: Desk, user: String?, say: (String) -> Unit, then: () -> Unit) {
        val view = activity.layoutInflater.inflate(R.layout.server, null)
        val address = view.findViewById<EditText>(R.id.address)
        val token = view.findViewById<EditText>(R.id.token)
        val kept = activity.getPreferences(Activity.MODE_PRIVATE)
        address.setText(kept.getString(ADDRESS, "http://10.0.2.2:8000")) // the laptop, as an emulator sees it
        AlertDialog.Builder(activity)
            .setTitle(R.string.sync)
            .setView(view)
            .setPositiveButton(R.string.sync) { _, _ ->
                kept.edit().putString(ADDRESS, "${address.text}").apply() // the token is not kept
                val isDebug = activity.applicationInfo.flags and ApplicationInfo.FLAG_DEBUGGABLE != 0
                desk.sync(user, say, { said: String -> say(said).also { then() } }) { ranker ->
                    val client = PackClient("${address.text}".trim(), "${token.text}".trim(), insecure = isDebug)
                    told(activity, client.sync(ranker), client)
                }
            }
            .setNegativeButton(R.string.no, null)
            .show()
    }

    private fun told(activity: Activity, synced: Synced, client: PackClient): String = when (synced) {
        Synced.NEW -> activity.getString(R.string.synced_new)
        Synced.SAME -> activity.getString(R.string.synced_same)
        Synced.NONE -> activity.getString(R.string.synced_none)
        Synced.GONE -> activity.getString(R.string.synced_gone)
        Synced.OFFLINE -> activity.getString(R.string.synced_offline)
        Synced.REFUSED -> activity.getString(R.string.failed, client.problem.orEmpty())
    }

    private const val ADDRESS = "address"
}
